package sas.stem;

import com.sun.net.httpserver.Headers;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.net.URLClassLoader;
import java.net.URLDecoder;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.time.Duration;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.TreeMap;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.BiFunction;
import java.util.function.Function;
import java.util.function.Supplier;
import java.util.jar.JarFile;
import java.util.logging.Level;
import java.util.logging.Logger;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/** Uses once what HTTP apps use, so that it is loaded, linked, initialised and partly compiled. */
final class Warm {
    private Warm() {}

    private interface Step {
        void run() throws Exception;
    }

    static void up() {
        PrintStream out = System.out;
        PrintStream err = System.err;
        // Through the real classes, into nothing.
        System.setOut(new PrintStream(OutputStream.nullOutputStream(), true));
        System.setErr(new PrintStream(OutputStream.nullOutputStream(), true));
        try {
            step(Warm::values);
            step(Warm::time);
            step(Warm::threads);
            step(Warm::logging);
            step(Warm::classes);
            step(Warm::sockets);
            step(() -> http(null));
            ExecutorService executor = Executors.newFixedThreadPool(2);
            step(() -> http(executor));
            executor.shutdown();
            step(() -> executor.awaitTermination(1, TimeUnit.SECONDS));
        } finally {
            System.setOut(out);
            System.setErr(err);
        }
    }

    /** A JDK that lacks one of these modules is a stem all the same. */
    private static void step(Step step) {
        try {
            step.run();
        } catch (Exception | LinkageError missing) {
            // What can't be exercised is loaded by the app, as in a cold start.
        }
    }

    private static void values() throws Exception {
        StringBuilder all = new StringBuilder();
        for (int n = 0; n < 50; n++) {
            String text = "value " + n + " of " + all.length() + ';';
            long wide = n * 31L;
            double real = n / 3.0;
            Object any = n % 2 == 0 ? (Object) text : (Object) wide;
            all.append("a" + text).append(text + "b").append("n=" + n).append("l=" + wide).append("d=" + real);
            all.append(text + text).append("any " + any).append(text + ":" + text + ":" + n).append('c' + text);
            all.append("{\"id\":" + n + ",\"name\":\"" + text + "\",\"on\":" + (n > 2) + "}");
            all.append(any + " " + any).append(n + text).append(text + wide + n);
            if (all.length() > 4000) {
                all.setLength(0);
            }
        }
        all.append(String.format("%s %d %5.2f %x %-10s|%08d%n", "s", 3, 2.5, 255, "left", 42));
        all.append(String.join(",", List.of("a", "b"))).append("x".repeat(3)).append(" trim ".strip());
        Map<String, Integer> counts = new HashMap<>();
        for (String word : "to be or not to be".split(" ")) {
            counts.merge(word, 1, Integer::sum);
            counts.computeIfAbsent(word + "!", key -> key.length());
        }
        Map<String, Integer> sorted = new TreeMap<>(counts);
        all.append(sorted).append(new ArrayList<>(counts.keySet())).append(Optional.of("x").map(String::length));
        all.append(IntStream.range(0, 20).filter(n -> n % 2 == 0).mapToObj(Integer::toString)
                .collect(Collectors.joining(",")));
        all.append(List.of("b", "a", "c").stream().sorted().map(String::toUpperCase).collect(Collectors.toList()));
        all.append(Arrays.asList(3, 1, 2).stream().mapToInt(Integer::intValue).sum());
        all.append(counts.entrySet().stream().collect(Collectors.groupingBy(Map.Entry::getValue)));
        List<String> names = new ArrayList<>(List.of("x", "y"));
        Collections.sort(names, (a, b) -> b.compareTo(a));
        names.forEach(name -> all.append(name));
        Function<String, Integer> length = String::length;
        BiFunction<Integer, Integer, Integer> plus = (a, b) -> a + b;
        Supplier<List<String>> fresh = ArrayList::new;
        Runnable nothing = () -> all.append(fresh.get()).append(plus.apply(length.apply("x"), 1));
        nothing.run();
        all.append(Pattern.compile("(\\w+)=(\\d+)").matcher("a=1 b=2").replaceAll("$2")).append("a,b".split(",").length);
        all.append(UUID.nameUUIDFromBytes(new byte[] {1})).append(Base64.getEncoder().encodeToString(new byte[] {1, 2}));
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        all.append(digest.digest("x".getBytes(StandardCharsets.UTF_8)).length);
        all.append(URI.create("http://localhost:80/a?b=c").getPath());
        all.append(URLDecoder.decode("a%20b", StandardCharsets.UTF_8)).append("ä".getBytes(StandardCharsets.UTF_8).length);
        Properties properties = new Properties();
        properties.load(new java.io.StringReader("a=b\nc: d\n"));
        all.append(properties).append(Integer.parseInt("12")).append(Long.parseLong("3")).append(Double.parseDouble("1.5"));
        all.append(System.getenv().size()).append(System.getenv("PORT")).append(System.getProperty("user.dir"));
        all.append(new java.math.BigDecimal("1.10").add(java.math.BigDecimal.ONE)).append(Locale.getDefault());
        all.append(new java.util.Random(1).nextInt()).append(ByteBuffer.allocate(8).putInt(1).flip().getInt());
        ArrayDeque<Integer> deque = new ArrayDeque<>(List.of(1, 2));
        all.append(deque.poll()).append(Warm.Color.valueOf("RED")).append(switchOn("b")).append(new Point(1, 2));
        System.out.println(all);
        System.out.printf("%s%n", all.length());
        System.err.println("err " + all.length());
    }

    private enum Color { RED, BLUE }

    private record Point(int x, int y) {}

    private static int switchOn(String text) {
        switch (text) {
            case "a": return 1;
            case "b": return 2;
            default: return 3;
        }
    }

    private static void time() {
        Instant now = Instant.now();
        String text = DateTimeFormatter.ISO_OFFSET_DATE_TIME.format(now.atOffset(ZoneOffset.UTC));
        text += DateTimeFormatter.RFC_1123_DATE_TIME.format(now.atOffset(ZoneOffset.UTC));
        text += Duration.ofMillis(1500) + "" + java.time.LocalDate.of(2024, 1, 2);
        System.out.println(text + System.currentTimeMillis() + System.nanoTime());
    }

    private static void threads() throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(2);
        AtomicLong count = new AtomicLong();
        for (int n = 0; n < 10; n++) {
            pool.submit(() -> count.incrementAndGet());
        }
        pool.submit(() -> "x").get(1, TimeUnit.SECONDS);
        pool.execute(count::incrementAndGet);
        CompletableFuture.supplyAsync(() -> "a", pool).thenApply(a -> a + "b").get(1, TimeUnit.SECONDS);
        pool.shutdown();
        pool.awaitTermination(1, TimeUnit.SECONDS);
        ScheduledExecutorService timer = Executors.newScheduledThreadPool(1);
        timer.schedule(() -> count.incrementAndGet(), 1, TimeUnit.MILLISECONDS).get(1, TimeUnit.SECONDS);
        timer.shutdownNow();
        CountDownLatch latch = new CountDownLatch(1);
        Thread thread = new Thread(latch::countDown, "warm");
        thread.setDaemon(true);
        thread.start();
        latch.await(1, TimeUnit.SECONDS);
        ConcurrentHashMap<String, Long> map = new ConcurrentHashMap<>();
        map.computeIfAbsent("a", key -> 1L);
        map.merge("a", 1L, Long::sum);
        // Hooks are registered by most servers; this one leaves no trace.
        Thread hook = new Thread(() -> count.get());
        Runtime.getRuntime().addShutdownHook(hook);
        Runtime.getRuntime().removeShutdownHook(hook);
    }

    private static void logging() {
        Logger logger = Logger.getLogger("sas.stem.warm");
        logger.log(Level.FINE, "not shown {0}", 1);
        java.util.logging.SimpleFormatter formatter = new java.util.logging.SimpleFormatter();
        java.util.logging.LogRecord line = new java.util.logging.LogRecord(Level.INFO, "shown {0}");
        line.setParameters(new Object[] {1});
        line.setLoggerName("sas.stem.warm");
        line.setThrown(new IllegalStateException("shown"));
        formatter.format(line);
        System.getLogger("sas.stem.warm").log(System.Logger.Level.DEBUG, "not shown");
    }

    private static void classes() throws Exception {
        String own = Warm.class.getProtectionDomain().getCodeSource().getLocation().getPath();
        try (JarFile jar = new JarFile(own)) {
            jar.getManifest().getMainAttributes().getValue("Main-Class");
            try (InputStream in = jar.getInputStream(jar.getJarEntry("sas/stem/Warm.class"))) {
                in.readAllBytes();
            }
        }
        java.net.URL[] urls = {Path.of(own).toUri().toURL()};
        try (URLClassLoader loader = new URLClassLoader(urls, ClassLoader.getPlatformClassLoader())) {
            Class<?> type = loader.loadClass("sas.stem.Warm$Point");
            type.getDeclaredConstructors()[0].getParameterCount();
            loader.getResource("sas/stem/Warm.class");
            loader.getResources("META-INF/MANIFEST.MF").hasMoreElements();
        }
        Path file = Files.createTempFile("sas-stem", ".txt");
        Files.writeString(file, "a\nb\n");
        Files.readAllLines(file);
        Files.exists(file);
        try (BufferedReader reader = Files.newBufferedReader(file)) {
            reader.readLine();
        }
        Files.delete(file);
        java.lang.reflect.Proxy.newProxyInstance(
                Warm.class.getClassLoader(), new Class<?>[] {Runnable.class}, (proxy, method, args) -> null);
        Warm.class.getDeclaredMethod("time").getAnnotations();
    }

    private static void sockets() throws Exception {
        try (ServerSocket server = new ServerSocket(0, 8, InetAddress.getLoopbackAddress())) {
            Thread answer = new Thread(() -> {
                try (Socket socket = server.accept();
                        BufferedReader in = new BufferedReader(new InputStreamReader(socket.getInputStream()))) {
                    socket.setTcpNoDelay(true);
                    socket.getOutputStream().write((in.readLine() + "\n").getBytes(StandardCharsets.UTF_8));
                } catch (IOException gone) {
                    // The other side says so.
                }
            });
            answer.start();
            try (Socket socket = new Socket(server.getInetAddress(), server.getLocalPort())) {
                socket.getOutputStream().write("x\n".getBytes(StandardCharsets.UTF_8));
                socket.getInputStream().read();
            }
            answer.join(1000);
        }
    }

    private static void http(ExecutorService executor) throws Exception {
        // As apps do it: on all addresses, which is another way through the network code than loopback.
        HttpServer server = HttpServer.create(new InetSocketAddress(0), 0);
        server.createContext("/", Warm::answer);
        server.createContext("/body", exchange -> {
            exchange.getRequestBody().readAllBytes();
            answer(exchange);
        });
        server.setExecutor(executor);
        server.start();
        int port = server.getAddress().getPort();
        try {
            // Many connections with few requests: on later ones a delayed acknowledgement costs 40 ms each.
            for (int connection = 0; connection < 12; connection++) {
                try (Socket socket = new Socket(InetAddress.getLoopbackAddress(), port)) {
                    socket.setSoTimeout(2000);
                    for (int n = 0; n < 2; n++) {
                        String head = (connection + n) % 3 == 2
                                ? "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
                                : "GET /a?b=c HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nX-Request-Id: 1\r\n\r\n";
                        socket.getOutputStream().write(head.getBytes(StandardCharsets.US_ASCII));
                        readAnswer(socket.getInputStream());
                    }
                }
            }
        } finally {
            server.stop(0);
        }
    }

    private static void readAnswer(InputStream in) throws IOException {
        ByteArrayOutputStream head = new ByteArrayOutputStream();
        while (!head.toString(StandardCharsets.ISO_8859_1).endsWith("\r\n\r\n")) {
            int next = in.read();
            if (next < 0) {
                throw new IOException("closed");
            }
            head.write(next);
        }
        String text = head.toString(StandardCharsets.ISO_8859_1).toLowerCase(Locale.ROOT);
        int at = text.indexOf("content-length:") + 15;
        in.readNBytes(Integer.parseInt(text.substring(at, text.indexOf('\r', at)).trim()));
    }

    private static void answer(HttpExchange exchange) throws IOException {
        Headers headers = exchange.getResponseHeaders();
        headers.set("Content-Type", "text/plain; charset=utf-8");
        headers.add("X-A", "b");
        String path = exchange.getRequestURI().getPath() + exchange.getRequestMethod()
                + exchange.getRequestHeaders().getFirst("Host") + exchange.getRequestURI().getQuery();
        byte[] body = ("hello " + path + exchange.getRemoteAddress()).getBytes(StandardCharsets.UTF_8);
        exchange.sendResponseHeaders(200, body.length);
        try (OutputStream out = exchange.getResponseBody()) {
            out.write(body);
        }
        exchange.close();
    }
}
