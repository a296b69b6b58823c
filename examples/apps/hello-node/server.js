// A small HTTP program: listens on PORT and greets.
const http = require("http");

const server = http.createServer((request, response) => {
  response.setHeader("content-type", "text/plain");
  response.end(`hello from ${process.env.K_REVISION}, in JavaScript\n`);
});
process.on("SIGTERM", () => server.close(() => process.exit(0)));
server.listen(Number(process.env.PORT), "127.0.0.1");
