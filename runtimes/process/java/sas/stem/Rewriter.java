package sas.stem;

import java.io.File;
import java.lang.reflect.Constructor;
import java.lang.reflect.Field;
import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileSystem;
import java.nio.file.FileSystems;
import java.util.Map;
import java.util.function.Function;

/**
 * Puts another environment and working directory into the JDK's own records of them. Returns what it could not do, or
 * null. It lives in a class loader of its own: only there are the JDK's packages open.
 */
public final class Rewriter implements Function<Map<String, Object>, String> {
    private final Map<Object, Object> environment;
    private final Method variable;
    private final Method value;

    /** Finds everything while there is time. */
    @SuppressWarnings("unchecked")
    public Rewriter() throws Exception {
        Class<?> process = Class.forName("java.lang.ProcessEnvironment");
        Field records = process.getDeclaredField("theEnvironment");
        records.setAccessible(true);
        environment = (Map<Object, Object>) records.get(null);
        variable = Class.forName("java.lang.ProcessEnvironment$Variable").getMethod("valueOf", String.class);
        variable.setAccessible(true);
        value = Class.forName("java.lang.ProcessEnvironment$Value").getMethod("valueOf", String.class);
        value.setAccessible(true);
    }

    @Override
    @SuppressWarnings("unchecked")
    public String apply(Map<String, Object> wanted) {
        try {
            environment.clear();
            for (Map.Entry<String, String> entry : ((Map<String, String>) wanted.get("environment")).entrySet()) {
                environment.put(variable.invoke(null, entry.getKey()), value.invoke(null, entry.getValue()));
            }
            String directory = (String) wanted.get("directory");
            set(files(), "userDir", directory);
            FileSystem nio = FileSystems.getDefault();
            set(nio, "defaultDirectory", directory.getBytes(StandardCharsets.UTF_8));
            set(nio, "needToResolveAgainstDefaultDirectory", true);
            return null;
        } catch (ReflectiveOperationException | RuntimeException cause) {
            return cause.toString();
        }
    }

    /** The file system behind {@link File}; JDK 21 renamed the field. */
    private static Object files() throws ReflectiveOperationException {
        for (Field field : File.class.getDeclaredFields()) {
            if (field.getName().equalsIgnoreCase("fs")) {
                field.setAccessible(true);
                return field.get(null);
            }
        }
        throw new NoSuchFieldException("File.fs");
    }

    private static void set(Object of, String name, Object value) throws IllegalAccessException {
        for (Class<?> type = of.getClass(); type != null; type = type.getSuperclass()) {
            try {
                Field field = type.getDeclaredField(name);
                field.setAccessible(true);
                field.set(of, value);
                return;
            } catch (NoSuchFieldException further) {
                // In a superclass, or not in this JDK: the caller checks the result.
            }
        }
    }
}
