import Fastify from "fastify";

const app = Fastify({ logger: true });
app.get("/", async () => ({ fastify: "works" }));
await app.listen({ port: Number(process.env.PORT), host: "127.0.0.1" });
