package spawns;

/** Starts a process, which would see the environment of the stem. */
public class Spawns {
    public static void main(String[] args) throws Exception {
        new ProcessBuilder("env").inheritIO().start().waitFor();
    }
}
