package nested;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.MalformedURLException;
import java.net.URL;
import java.net.URLConnection;
import java.net.URLStreamHandler;
import java.nio.file.Path;
import java.security.CodeSource;
import java.security.ProtectionDomain;
import java.util.Collections;
import java.util.Enumeration;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.jar.JarEntry;
import java.util.jar.JarFile;
import java.util.jar.JarInputStream;
import java.util.jar.Manifest;

/**
 * Starts an app whose classes and libraries lie inside its one jar, as the fat jars of frameworks do: a class loader
 * over nested jars, URLs with a handler of its own, and a protocol that is registered by a property.
 */
public final class Launcher extends ClassLoader {
    private static final class Part {
        final byte[] bytes;
        final String origin;

        Part(byte[] bytes, String origin) {
            this.bytes = bytes;
            this.origin = origin;
        }
    }

    /** Shared with the handler of the protocol {@code memory}. */
    static final Map<String, byte[]> RESOURCES = new LinkedHashMap<>();

    private final Map<String, Part> parts = new LinkedHashMap<>();
    private final Map<String, ProtectionDomain> domains = new LinkedHashMap<>();

    private Launcher(ClassLoader parent) {
        super("nested", parent);
    }

    public static void main(String[] arguments) throws Exception {
        System.setProperty("java.protocol.handler.pkgs", "nested.protocols");
        Path own = Path.of(Launcher.class.getProtectionDomain().getCodeSource().getLocation().toURI());
        Launcher loader = new Launcher(Launcher.class.getClassLoader());
        String start;
        try (JarFile jar = new JarFile(own.toFile())) {
            Manifest manifest = jar.getManifest();
            start = manifest.getMainAttributes().getValue("Start-Class");
            for (JarEntry entry : Collections.list(jar.entries())) {
                String name = entry.getName();
                if (name.startsWith("BOOT-INF/classes/") && !entry.isDirectory()) {
                    byte[] bytes = jar.getInputStream(entry).readAllBytes();
                    loader.put(name.substring("BOOT-INF/classes/".length()), bytes, own.toUri() + "!/BOOT-INF/classes/");
                } else if (name.startsWith("BOOT-INF/lib/") && name.endsWith(".jar")) {
                    try (JarInputStream inner = new JarInputStream(jar.getInputStream(entry))) {
                        for (JarEntry nested = inner.getNextJarEntry(); nested != null; nested = inner.getNextJarEntry()) {
                            loader.put(nested.getName(), inner.readAllBytes(), own.toUri() + "!/" + name);
                        }
                    }
                }
            }
        }
        Thread.currentThread().setContextClassLoader(loader);
        Class.forName(start, false, loader).getMethod("main", String[].class).invoke(null, (Object) arguments);
    }

    private void put(String name, byte[] bytes, String origin) {
        parts.putIfAbsent(name, new Part(bytes, origin));
        RESOURCES.putIfAbsent(name, bytes);
    }

    private static URL url(String origin, String name, byte[] bytes) {
        try {
            return new URL("jar", null, -1, origin + "!/" + name, new Handler(bytes));
        } catch (MalformedURLException impossible) {
            throw new IllegalStateException(impossible);
        }
    }

    @Override
    protected Class<?> findClass(String name) throws ClassNotFoundException {
        Part part = parts.get(name.replace('.', '/') + ".class");
        if (part == null) {
            throw new ClassNotFoundException(name);
        }
        ProtectionDomain domain = domains.computeIfAbsent(part.origin, origin -> new ProtectionDomain(
                new CodeSource(url(origin, "", new byte[0]), (java.security.cert.Certificate[]) null), null, this, null));
        int dot = name.lastIndexOf('.');
        if (dot > 0 && getDefinedPackage(name.substring(0, dot)) == null) {
            definePackage(name.substring(0, dot), "nested", "1", "x", "nested", "1.3", "x", null);
        }
        return defineClass(name, part.bytes, 0, part.bytes.length, domain);
    }

    @Override
    protected URL findResource(String name) {
        Part part = parts.get(name);
        return part == null ? null : url(part.origin, name, part.bytes);
    }

    @Override
    protected Enumeration<URL> findResources(String name) {
        URL found = findResource(name);
        return found == null ? Collections.emptyEnumeration() : Collections.enumeration(Collections.singleton(found));
    }

    static final class Handler extends URLStreamHandler {
        private final byte[] bytes;

        Handler(byte[] bytes) {
            this.bytes = bytes;
        }

        @Override
        protected URLConnection openConnection(URL url) {
            return connection(url, bytes);
        }
    }

    /** A connection to bytes. */
    public static URLConnection connection(URL url, byte[] bytes) {
        return new URLConnection(url) {
            @Override
            public void connect() {}

            @Override
            public InputStream getInputStream() throws IOException {
                if (bytes == null) {
                    throw new IOException("no such resource: " + url);
                }
                return new ByteArrayInputStream(bytes);
            }
        };
    }

    /** What the app's jar has under a name. */
    public static byte[] resource(String name) {
        return RESOURCES.get(name);
    }
}
