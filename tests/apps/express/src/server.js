const app = require("express")();
app.get("/", (request, response) =>
  response.json({ version: process.env.npm_package_version, preloaded: process.env.PRELOADED }),
);
app.listen(process.env.PORT);
