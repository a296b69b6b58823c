package sas.stem;

import java.io.ByteArrayInputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.File;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.InputStream;
import java.lang.instrument.Instrumentation;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.jar.JarFile;

/**
 * A JVM that waits to become an app.
 *
 * <p>Started with a socket as standard input. It exercises what HTTP apps use, writes {@code R}, and then reads one
 * message: environment, properties, jar, main class, arguments. It takes these on, answers {@code S} and calls the
 * app's main method on the main thread; or answers {@code E} and a reason, and exits, when it can't be that app
 * exactly. Arguments of its own: {@code train} ends it after the exercise, for a class archive; others are classes to
 * load and initialise.
 */
public final class Boot {
    private static volatile Instrumentation instrumentation;

    private Boot() {}

    /** By {@code Launcher-Agent-Class}: no flag on the command line that an app could see. */
    public static void agentmain(String arguments, Instrumentation given) {
        instrumentation = given;
    }

    public static void main(String[] arguments) throws Throwable {
        boolean train = false;
        List<String> classes = new ArrayList<>();
        for (String argument : arguments) {
            if (argument.equals("train")) {
                train = true;
            } else {
                classes.add(argument);
            }
        }
        Map<Object, Object> properties = new HashMap<>(System.getProperties());
        ClassLoader system = ClassLoader.getSystemClassLoader();
        for (String name : classes) {
            try {
                Class.forName(name, true, system);
            } catch (Throwable missing) {
                System.err.println("stem: shared class " + name + ": " + missing);
            }
        }
        Warm.up();
        Object rewriter = rewriter();
        if (train) {
            System.exit(0);
        }
        DataInputStream in = new DataInputStream(new FileInputStream(FileDescriptor.in));
        DataOutputStream out = new DataOutputStream(new FileOutputStream(FileDescriptor.in));
        System.gc();
        out.write('R');
        out.flush();
        Message message;
        try {
            message = Message.read(in);
        } catch (java.io.EOFException over) {
            // The host has no use for it any more.
            Runtime.getRuntime().halt(0);
            return;
        }
        Method main;
        try {
            main = become(message, rewriter, properties);
        } catch (Throwable cause) {
            byte[] reason = String.valueOf(cause).getBytes(StandardCharsets.UTF_8);
            out.write('E');
            out.writeInt(reason.length);
            out.write(reason);
            out.flush();
            Runtime.getRuntime().halt(70);
            return;
        }
        out.write('S');
        out.flush();
        message.forget();
        run(main, message.arguments);
    }

    private static void run(Method main, String[] arguments) throws Throwable {
        try {
            main.invoke(null, (Object) arguments);
        } catch (InvocationTargetException wrapped) {
            Throwable cause = wrapped.getCause();
            // As if the launcher had called it: our frames are none of the app's business.
            StackTraceElement[] trace = cause.getStackTrace();
            int end = trace.length;
            for (int at = 0; at < trace.length; at++) {
                if (trace[at].getClassName().equals(main.getDeclaringClass().getName())
                        && trace[at].getMethodName().equals("main")) {
                    end = at + 1;
                }
            }
            StackTraceElement[] own = new StackTraceElement[end];
            System.arraycopy(trace, 0, own, 0, end);
            cause.setStackTrace(own);
            throw cause;
        }
    }

    private static Method become(Message message, Object rewriter, Map<Object, Object> properties) throws Throwable {
        // Standard input of a cold start is empty.
        System.setIn(new ByteArrayInputStream(new byte[0]));
        Map<String, Object> wanted = new HashMap<>();
        wanted.put("environment", message.environment);
        wanted.put("directory", message.directory);
        @SuppressWarnings("unchecked")
        java.util.function.Function<Map<String, Object>, String> rewrite =
                (java.util.function.Function<Map<String, Object>, String>) rewriter;
        String refused = rewrite.apply(wanted);
        if (refused != null) {
            throw new IllegalStateException(refused);
        }
        // What the exercise has set: the default zone puts itself into a property when it is first asked for.
        java.util.TimeZone.setDefault(null);
        System.getProperties().keySet().retainAll(properties.keySet());
        System.getProperties().putAll(properties);
        for (Map.Entry<String, String> property : message.properties.entrySet()) {
            System.setProperty(property.getKey(), property.getValue());
        }
        System.setProperty("user.dir", message.directory);
        System.setProperty("java.class.path", message.jar);
        StringBuilder command = new StringBuilder(message.jar);
        for (String argument : message.arguments) {
            command.append(' ').append(argument);
        }
        System.setProperty("sun.java.command", command.toString());
        if (!new File("probe").getAbsolutePath().equals(message.directory + "/probe")
                || !java.nio.file.Path.of("probe").toAbsolutePath().toString().equals(message.directory + "/probe")) {
            throw new IllegalStateException("the working directory can't be changed in this JDK");
        }
        if (!message.environment.equals(System.getenv())) {
            throw new IllegalStateException("the environment can't be changed in this JDK");
        }
        // Handlers of protocols that the exercise has used are looked up anew, as in a JVM that has just booted.
        java.net.URL.setURLStreamHandlerFactory(null);
        JarFile jar = new JarFile(message.jar);
        instrumentation.appendToSystemClassLoaderSearch(jar);
        ClassLoader system = ClassLoader.getSystemClassLoader();
        open(message, system);
        Class<?> type = Class.forName(message.mainClass, false, system);
        Method main = type.getMethod("main", String[].class);
        if (!Modifier.isStatic(main.getModifiers()) || main.getReturnType() != void.class) {
            throw new NoSuchMethodException(message.mainClass + ".main(String[]) is not public static void");
        }
        main.setAccessible(true);
        return main;
    }

    /** {@code Add-Exports} and {@code Add-Opens} of the manifest, which only the launcher honours. */
    private static void open(Message message, ClassLoader system) {
        Set<Module> unnamed = Set.of(system.getUnnamedModule());
        for (String entry : message.exports) {
            redefine(entry, unnamed, false);
        }
        for (String entry : message.opens) {
            redefine(entry, unnamed, true);
        }
    }

    private static void redefine(String entry, Set<Module> to, boolean open) {
        int slash = entry.indexOf('/');
        if (slash < 0) {
            return;
        }
        Module module = ModuleLayer.boot().findModule(entry.substring(0, slash)).orElse(null);
        String name = entry.substring(slash + 1);
        if (module == null || !module.getPackages().contains(name)) {
            return;
        }
        Map<String, Set<Module>> packages = Map.of(name, to);
        instrumentation.redefineModule(
                module, Set.of(), open ? Map.of() : packages, open ? packages : Map.of(), Set.of(), Map.of());
    }

    /** In a loader of its own, so that the JDK's packages are opened to it and not to the app. */
    private static Object rewriter() throws Exception {
        byte[] code;
        try (InputStream in = Boot.class.getResourceAsStream("Rewriter.class")) {
            code = in.readAllBytes();
        }
        ClassLoader own = new ClassLoader(ClassLoader.getPlatformClassLoader()) {
            @Override
            protected Class<?> findClass(String name) throws ClassNotFoundException {
                if (!name.equals("sas.stem.Rewriter")) {
                    throw new ClassNotFoundException(name);
                }
                return defineClass(name, code, 0, code.length);
            }
        };
        Class<?> type = own.loadClass("sas.stem.Rewriter");
        Set<Module> to = Set.of(own.getUnnamedModule());
        Map<String, Set<Module>> packages = new HashMap<>();
        for (String name : List.of("java.lang", "java.io", "sun.nio.fs")) {
            if (Object.class.getModule().getPackages().contains(name)) {
                packages.put(name, to);
            }
        }
        instrumentation.redefineModule(
                Object.class.getModule(), new HashSet<>(), Map.of(), packages, Set.of(), Map.of());
        return type.getDeclaredConstructor().newInstance();
    }

    /** What the host says it is to be. */
    private static final class Message {
        Map<String, String> environment;
        Map<String, String> properties;
        String directory;
        String jar;
        String mainClass;
        String[] arguments;
        List<String> exports;
        List<String> opens;

        static Message read(DataInputStream in) throws java.io.IOException {
            in.readInt();
            Message message = new Message();
            message.environment = pairs(in);
            message.properties = pairs(in);
            message.directory = text(in);
            message.jar = text(in);
            message.mainClass = text(in);
            message.arguments = list(in).toArray(new String[0]);
            message.exports = list(in);
            message.opens = list(in);
            return message;
        }

        /** Secrets stay in the environment and nowhere else. */
        void forget() {
            environment = null;
            properties = null;
        }

        private static Map<String, String> pairs(DataInputStream in) throws java.io.IOException {
            Map<String, String> pairs = new LinkedHashMap<>();
            for (int left = in.readInt(); left > 0; left--) {
                String name = text(in);
                pairs.put(name, text(in));
            }
            return pairs;
        }

        private static List<String> list(DataInputStream in) throws java.io.IOException {
            List<String> list = new ArrayList<>();
            for (int left = in.readInt(); left > 0; left--) {
                list.add(text(in));
            }
            return list;
        }

        private static String text(DataInputStream in) throws java.io.IOException {
            byte[] bytes = new byte[in.readInt()];
            in.readFully(bytes);
            return new String(bytes, StandardCharsets.UTF_8);
        }
    }
}
