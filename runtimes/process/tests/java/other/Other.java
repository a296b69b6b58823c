package other;

/** In a jar of its own, reached by the manifest's Class-Path. */
public class Other implements Runnable {
    public static String hello() {
        return "hello from the other jar";
    }

    @Override
    public void run() {}
}
