package warm;

import java.io.InputStream;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.servlet.ServletContextHandler;
import org.eclipse.jetty.servlet.ServletHolder;
import org.springframework.beans.factory.annotation.Autowired;
import org.springframework.stereotype.Component;
import org.springframework.web.bind.annotation.RequestMapping;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.context.support.AnnotationConfigWebApplicationContext;
import org.springframework.web.servlet.DispatcherServlet;
import org.springframework.web.servlet.mvc.method.annotation.RequestMappingHandlerAdapter;
import org.springframework.web.servlet.mvc.method.annotation.RequestMappingHandlerMapping;

/** Exercises Jetty and Spring MVC when it is initialised, with a controller of its own: a stem's shared class. */
public final class Framework {
    private Framework() {}

    /** Any bean. */
    @Component
    public static class Part {}

    /** Any controller. */
    @RestController
    public static class Hello {
        @Autowired private Part part;

        @RequestMapping(value = "/", produces = "application/json")
        public String hello() throws Exception {
            return new com.fasterxml.jackson.databind.ObjectMapper()
                    .writeValueAsString(java.util.Collections.singletonMap("part", String.valueOf(part != null)));
        }
    }

    static {
        try {
            exercise();
        } catch (Exception cause) {
            throw new IllegalStateException("the frameworks can't be exercised", cause);
        }
    }

    private static void exercise() throws Exception {
        AnnotationConfigWebApplicationContext context = new AnnotationConfigWebApplicationContext();
        context.register(RequestMappingHandlerMapping.class, RequestMappingHandlerAdapter.class);
        context.scan("warm");
        ServletContextHandler handler = new ServletContextHandler();
        handler.setContextPath("/");
        ServletHolder holder = new ServletHolder(new DispatcherServlet(context));
        holder.setInitOrder(1);
        handler.addServlet(holder, "/");
        Server server = new Server(0);
        server.setHandler(handler);
        server.start();
        int port = ((ServerConnector) server.getConnectors()[0]).getLocalPort();
        for (int n = 0; n < 10; n++) {
            try (Socket socket = new Socket("127.0.0.1", port)) {
                socket.getOutputStream().write(
                        "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".getBytes(StandardCharsets.US_ASCII));
                InputStream in = socket.getInputStream();
                while (in.read() >= 0) {
                    // To the end.
                }
            }
        }
        server.stop();
        context.close();
    }
}
