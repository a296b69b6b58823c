package probe;

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.File;
import java.io.FileInputStream;
import java.io.InputStream;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.TreeMap;

/** Tells what it sees of the world, so that a stem and a cold JVM can be compared. */
public class Probe {
    private interface Fact {
        Object get() throws Exception;
    }

    private static final List<String> FACTS = new ArrayList<>();

    private static void fact(String name, Fact fact) {
        String value;
        try {
            value = String.valueOf(fact.get());
        } catch (Throwable cause) {
            value = cause.toString();
        }
        FACTS.add(name + "=" + value);
    }

    public static void main(String[] args) throws Exception {
        fact("environment", () -> new TreeMap<>(System.getenv()));
        fact("getenv", () -> System.getenv("GREETING") + System.getenv("NOT_SET"));
        fact("arguments", () -> String.join("|", args));
        fact("class path", () -> System.getProperty("java.class.path"));
        fact("command", () -> System.getProperty("sun.java.command"));
        fact("user.dir", () -> System.getProperty("user.dir"));
        fact("property", () -> System.getProperty("app.name"));
        fact("absolute", () -> new File("a").getAbsolutePath() + Path.of("b").toAbsolutePath());
        fact("relative io", () -> {
            try (InputStream in = new FileInputStream("config/settings.txt")) {
                return new String(in.readAllBytes(), StandardCharsets.UTF_8);
            }
        });
        fact("relative nio", () -> Files.readString(Path.of("config/settings.txt")));
        fact("listing", () -> {
            String[] names = new File(".").getCanonicalFile().list();
            java.util.Arrays.sort(names);
            return String.join(",", names);
        });
        fact("resource", () -> text(Probe.class.getResourceAsStream("/data.txt")));
        fact("resource by loader", () -> text(ClassLoader.getSystemResourceAsStream("data.txt")));
        fact("resource url", () -> Probe.class.getResource("/data.txt"));
        fact("own loader", () -> Probe.class.getClassLoader() == ClassLoader.getSystemClassLoader());
        fact("context loader", () ->
                Thread.currentThread().getContextClassLoader() == ClassLoader.getSystemClassLoader());
        fact("loader kind", () -> Probe.class.getClassLoader().getClass().getName());
        fact("code source", () -> Probe.class.getProtectionDomain().getCodeSource().getLocation());
        fact("package", () -> Probe.class.getPackage().getImplementationVersion()
                + Probe.class.getPackage().getImplementationTitle());
        fact("module", () -> Probe.class.getModule().isNamed());
        fact("manifest class path", () -> Class.forName("other.Other").getMethod("hello").invoke(null));
        fact("lib resource", () -> text(ClassLoader.getSystemResourceAsStream("other.txt")));
        fact("service", () -> java.util.ServiceLoader.load(Runnable.class).findFirst()
                .map(found -> found.getClass().getName()));
        fact("missing class", () -> Class.forName("no.such.Class"));
        fact("closed package", () -> {
            var field = String.class.getDeclaredField("value");
            field.setAccessible(true);
            return field.getName();
        });
        fact("add-opens", () -> {
            var field = java.util.ArrayList.class.getDeclaredField("elementData");
            field.setAccessible(true);
            return field.getName();
        });
        fact("add-exports", () -> Class.forName("sun.net.util.IPAddressUtil")
                .getMethod("isIPv4LiteralAddress", String.class).invoke(null, "127.0.0.1"));
        fact("late protocol", () -> text(new java.net.URL("memory:data.txt").openStream()));
        fact("context resource", () ->
                text(Thread.currentThread().getContextClassLoader().getResourceAsStream("data.txt")));
        fact("properties", () -> {
            TreeMap<String, String> all = new TreeMap<>();
            for (String name : System.getProperties().stringPropertyNames()) {
                all.put(name, System.getProperty(name).replace('\n', ' '));
            }
            return all;
        });
        fact("loader name", () -> Probe.class.getClassLoader().getName());
        fact("thread", () -> Thread.currentThread().getName() + Thread.currentThread().getThreadGroup().getName()
                + Thread.currentThread().getPriority() + Thread.currentThread().isDaemon());
        fact("stdin", () -> System.in.read());
        fact("locale", () -> java.util.Locale.getDefault() + System.getProperty("file.encoding")
                + java.nio.charset.Charset.defaultCharset() + java.util.TimeZone.getDefault().getID());
        fact("logging", () -> java.util.logging.Logger.getLogger("").getHandlers().length
                + "" + java.util.logging.Logger.getLogger("probe").getUseParentHandlers());
        fact("security", () -> System.getProperty("java.home") + System.getProperty("java.version"));
        fact("assertions", () -> Probe.class.desiredAssertionStatus());
        fact("zone", () -> System.getProperty("user.timezone"));
        fact("tmpdir", () -> System.getProperty("java.io.tmpdir"));
        fact("heap", () -> Runtime.getRuntime().maxMemory());
        fact("mode", () -> System.getenv("MODE"));
        Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook ran")));
        if ("throw".equals(System.getenv("MODE"))) {
            throw new IllegalStateException("main failed");
        }
        if ("return".equals(System.getenv("MODE"))) {
            System.out.println("returning");
            return;
        }
        HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(System.getenv("PORT"))), 0);
        server.createContext("/", exchange -> answer(exchange, String.join("\n", FACTS)));
        server.createContext("/echo", exchange -> answer(exchange, text(exchange.getRequestBody())));
        server.createContext("/exit", exchange -> System.exit(7));
        server.createContext("/halt", exchange -> Runtime.getRuntime().halt(9));
        server.start();
        System.out.println("listening");
        System.err.println("on stderr");
    }

    private static String text(InputStream in) throws java.io.IOException {
        return new String(in.readAllBytes(), StandardCharsets.UTF_8);
    }

    private static void answer(HttpExchange exchange, String text) throws java.io.IOException {
        byte[] body = text.getBytes(StandardCharsets.UTF_8);
        exchange.sendResponseHeaders(200, body.length == 0 ? -1 : body.length);
        if (body.length > 0) {
            exchange.getResponseBody().write(body);
        }
        exchange.close();
    }
}
