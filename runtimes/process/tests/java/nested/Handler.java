package nested.protocols.memory;

import java.net.URL;
import java.net.URLConnection;
import java.net.URLStreamHandler;

/** The protocol {@code memory}, found by the property {@code java.protocol.handler.pkgs}. */
public final class Handler extends URLStreamHandler {
    @Override
    protected URLConnection openConnection(URL url) {
        return nested.Launcher.connection(url, nested.Launcher.resource(url.getPath()));
    }
}
