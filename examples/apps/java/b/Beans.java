package app;

import com.fasterxml.jackson.databind.ObjectMapper;
import java.util.Collections;
import java.util.List;
import org.springframework.beans.factory.annotation.Autowired;
import org.springframework.stereotype.Component;
import org.springframework.web.bind.annotation.RequestMapping;
import org.springframework.web.bind.annotation.RestController;

/** Thirty beans, as an application of some size has them. */
public final class Beans {
    private Beans() {}

    /** What each of them can do. */
    public interface Part {
        String name();
    }

    /** Answers with JSON that names them all. */
    @RestController
    public static class Controller {
        @Autowired private List<Part> parts;
        private final ObjectMapper mapper = new ObjectMapper();

        @RequestMapping(value = "/", produces = "application/json")
        public String hello() throws Exception {
            StringBuilder names = new StringBuilder();
            for (Part part : parts) {
                names.append(part.name()).append(' ');
            }
            return mapper.writeValueAsString(Collections.singletonMap("parts", names.toString().trim()));
        }
    }

    @Component
    public static class Part1 implements Part {
        @Override
        public String name() {
            return "part1";
        }
    }

    @Component
    public static class Part2 implements Part {
        @Override
        public String name() {
            return "part2";
        }
    }

    @Component
    public static class Part3 implements Part {
        @Override
        public String name() {
            return "part3";
        }
    }

    @Component
    public static class Part4 implements Part {
        @Override
        public String name() {
            return "part4";
        }
    }

    @Component
    public static class Part5 implements Part {
        @Override
        public String name() {
            return "part5";
        }
    }

    @Component
    public static class Part6 implements Part {
        @Override
        public String name() {
            return "part6";
        }
    }

    @Component
    public static class Part7 implements Part {
        @Override
        public String name() {
            return "part7";
        }
    }

    @Component
    public static class Part8 implements Part {
        @Override
        public String name() {
            return "part8";
        }
    }

    @Component
    public static class Part9 implements Part {
        @Override
        public String name() {
            return "part9";
        }
    }

    @Component
    public static class Part10 implements Part {
        @Override
        public String name() {
            return "part10";
        }
    }

    @Component
    public static class Part11 implements Part {
        @Override
        public String name() {
            return "part11";
        }
    }

    @Component
    public static class Part12 implements Part {
        @Override
        public String name() {
            return "part12";
        }
    }

    @Component
    public static class Part13 implements Part {
        @Override
        public String name() {
            return "part13";
        }
    }

    @Component
    public static class Part14 implements Part {
        @Override
        public String name() {
            return "part14";
        }
    }

    @Component
    public static class Part15 implements Part {
        @Override
        public String name() {
            return "part15";
        }
    }

    @Component
    public static class Part16 implements Part {
        @Override
        public String name() {
            return "part16";
        }
    }

    @Component
    public static class Part17 implements Part {
        @Override
        public String name() {
            return "part17";
        }
    }

    @Component
    public static class Part18 implements Part {
        @Override
        public String name() {
            return "part18";
        }
    }

    @Component
    public static class Part19 implements Part {
        @Override
        public String name() {
            return "part19";
        }
    }

    @Component
    public static class Part20 implements Part {
        @Override
        public String name() {
            return "part20";
        }
    }

    @Component
    public static class Part21 implements Part {
        @Override
        public String name() {
            return "part21";
        }
    }

    @Component
    public static class Part22 implements Part {
        @Override
        public String name() {
            return "part22";
        }
    }

    @Component
    public static class Part23 implements Part {
        @Override
        public String name() {
            return "part23";
        }
    }

    @Component
    public static class Part24 implements Part {
        @Override
        public String name() {
            return "part24";
        }
    }

    @Component
    public static class Part25 implements Part {
        @Override
        public String name() {
            return "part25";
        }
    }

    @Component
    public static class Part26 implements Part {
        @Override
        public String name() {
            return "part26";
        }
    }

    @Component
    public static class Part27 implements Part {
        @Override
        public String name() {
            return "part27";
        }
    }

    @Component
    public static class Part28 implements Part {
        @Override
        public String name() {
            return "part28";
        }
    }

    @Component
    public static class Part29 implements Part {
        @Override
        public String name() {
            return "part29";
        }
    }
}
