package app;

import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.servlet.ServletContextHandler;
import org.eclipse.jetty.servlet.ServletHolder;
import org.springframework.web.context.support.AnnotationConfigWebApplicationContext;
import org.springframework.web.servlet.DispatcherServlet;
import org.springframework.web.servlet.mvc.method.annotation.RequestMappingHandlerAdapter;
import org.springframework.web.servlet.mvc.method.annotation.RequestMappingHandlerMapping;

/** App B of the burst: Jetty and Spring MVC, with the thirty beans of {@link Beans} found by scanning. */
public final class App {
    private App() {}

    public static void main(String[] args) throws Exception {
        AnnotationConfigWebApplicationContext context = new AnnotationConfigWebApplicationContext();
        context.register(RequestMappingHandlerMapping.class, RequestMappingHandlerAdapter.class);
        context.scan(App.class.getPackage().getName());
        ServletContextHandler handler = new ServletContextHandler();
        handler.setContextPath("/");
        ServletHolder holder = new ServletHolder(new DispatcherServlet(context));
        // When the server starts, not at the first request.
        holder.setInitOrder(1);
        handler.addServlet(holder, "/");
        Server server = new Server(Integer.parseInt(System.getenv("PORT")));
        server.setHandler(handler);
        server.start();
        server.join();
    }
}
