// Looks at every page of the console in a real browser. See `run` beside it.
import { chromium } from "playwright-core";
import { readFileSync, mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { request as ask } from "node:http";
import assert from "node:assert/strict";
import { actions, readsOnly } from "./actions.mjs";

const [, , base, listen, token, dir, pictures] = process.argv;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const admin = new URL(base).origin;
if (pictures) mkdirSync(pictures, { recursive: true });

// How late the page may be after the API, in milliseconds: a second, unless the machine has other things to do.
const LATE = Number(process.env.SAS_CONSOLE_LATE ?? 1000);

const began = Date.now();
const say = (text) => console.log(`${((Date.now() - began) / 1000).toFixed(1).padStart(6)} s  ${text}`);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// The admin API, as another tool sees it.
async function api(path, options = {}) {
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/yaml", ...options.headers };
  const answer = await fetch(admin + path, { ...options, headers });
  return { status: answer.status, body: await answer.json().catch(() => null) };
}

// A request from outside.
const call = (service, path = "/") => new Promise((done) => {
  const [host, port] = listen.split(":");
  const sent = ask({ host, port, path, headers: { host: `${service}.demo.localhost` } }, (answer) => {
    answer.resume();
    answer.on("end", () => done(answer.statusCode));
  });
  sent.on("error", () => done(0));
  sent.end();
});

async function until(what, look, most = 20000) {
  const end = Date.now() + most;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what}: not within ${most} ms`);
    await sleep(25);
  }
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--headless=new"],
});
const problems = [];
async function context(options) {
  const made = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  made.on("page", (page) => {
    page.on("pageerror", (error) => problems.push(`${page.url()}: ${error}`));
    page.on("console", (message) => {
      if (message.type() === "error" && !/status of (401|403|404)/.test(message.text())) problems.push(`${page.url()}: ${message.text()}`);
    });
    page.on("request", (request) => {
      if (!request.url().startsWith(admin)) problems.push(`${page.url()} loads ${request.url()}`);
    });
  });
  return made;
}

async function accessible(page, name, rules) {
  await page.evaluate(axe);
  const only = rules ? { runOnly: { type: "rule", values: rules } } : {};
  const { violations } = await page.evaluate((only) => window.axe.run(document, { resultTypes: ["violations"], ...only }), only);
  const told = violations.map((it) => `${it.id}: ${it.help}: ${it.nodes.slice(0, 3).map((node) => node.html).join(" | ")}`);
  assert.deepEqual(told, [], `axe on ${name}`);
  // Nothing but what scrolls by itself is wider than the window.
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(wide <= 1, `${name} is ${wide} pixels too wide`);
}

async function picture(page, name) {
  if (pictures) await page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true });
}

const PAGES = [
  ["overview", ""],
  ["service", "services/demo/thumbnails"],
  ["requests", "services/demo/reports/requests"],
  ["logs", "services/demo/orders/logs"],
  ["manifest", "services/demo/storefront/manifest"],
  ["steer", "services/demo/storefront/steer"],
  ["events", "events"],
  ["trigger", "events/demo/paid"],
  ["workflows", "workflows"],
  ["workflow", "workflows/demo/fulfil"],
  ["pool", "pool"],
  ["platform", "platform"],
  ["audit", "audit"],
  ["deploy", "deploy"],
];

try {
  const desk = await context({ colorScheme: "light" });
  const page = await desk.newPage();
  // Signing in, by keyboard alone.
  await page.goto(base);
  await accessible(page, "sign-in");
  await picture(page, "sign-in");
  await page.keyboard.type("guessed");
  await page.keyboard.press("Enter");
  await page.getByText("opens nothing here").waitFor();
  await page.keyboard.type(token);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Services" }).waitFor();
  const cookies = await desk.cookies(base);
  assert.ok(cookies[0].httpOnly && cookies[0].sameSite === "Strict" && !cookies[0].value.includes(token));
  say("signed in by keyboard");

  // The state of a cold start, of a decision, and of what fails: on the page within a second after the API has it.
  await page.goto(base + "services/demo/thumbnails");
  await page.locator("#live.on").waitFor();
  await until("a decision", async () => (await page.locator("#decisions tbody tr").count()) > 0, 30000);
  const reason = await page.locator("#decisions td.reason").first().innerText();
  assert.ok(reason.length > 20, reason);
  say(`a decision: ${reason.slice(0, 90)}`);
  const shown = async (what, there, seen) => {
    await until(what, there);
    const from = Date.now();
    await until(`${what} on the page`, seen, 3000);
    const late = Date.now() - from;
    assert.ok(late <= LATE, `${what}: ${late} ms late`);
    say(`${what}: ${late} ms after the API had it`);
  };
  const manifest = (name, path) => `apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: ${name}\n  namespace: demo\n  annotations:\n    sas.dev/package: ${path}\nspec:\n  template:\n    spec:\n      timeoutSeconds: 20\n      containers:\n        - image: ""\n`;
  const program = (name, text) => {
    mkdirSync(`${dir}/${name}`, { recursive: true });
    writeFileSync(`${dir}/${name}/main.py`, text);
    return manifest(name, `${dir}/${name}`);
  };
  const server = `
import http.server, os
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("now " + self.path, flush=True)
        self.send_response(200); self.end_headers(); self.wfile.write(b"hello")
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Hello).serve_forever()
`;
  await api("/v1/services", { method: "POST", body: program("sleeper", server) });
  await page.goto(base + "services/demo/sleeper/requests");
  await page.locator("#live.on").waitFor();
  const cold = async () => (await api("/v1/services/demo/sleeper/requests?notable=true")).body.requests.length;
  call("sleeper");
  await shown("a cold start", async () => (await cold()) > 0, async () => (await page.locator("#starts tbody tr").count()) > 0);

  // A program that ends at once.
  await api("/v1/services", { method: "POST", body: program("loops", "raise SystemExit('the configuration is missing')\n") });
  await page.goto(base);
  await page.locator("#live.on").waitFor();
  call("loops");
  const overview = async () => (await api("/v1/overview?search=loops")).body.services[0];
  await shown(
    "a crash loop",
    async () => (await overview())?.health === "failing",
    async () => (await page.locator("tr.failing", { hasText: "loops" }).count()) > 0,
  );
  const why = await page.locator("tr.failing", { hasText: "loops" }).innerText();
  assert.match(why, /starts failed/);
  assert.ok((await page.locator("#services tbody tr").first().innerText()).includes("loops"), "trouble is first");

  // A deploy that is refused tells its cause, and one that is fine leads to its service.
  await page.goto(base + "deploy");
  await page.getByLabel("Manifest").fill(manifest("Not A Name", "/nowhere"));
  await page.getByRole("button", { name: "Check and deploy" }).click();
  await page.getByRole("alert").waitFor();
  say(`a refused deploy: ${(await page.getByRole("alert").innerText()).slice(0, 110)}`);

  // Hostile lines.
  const hostile = program("hostile", `
for line in ["<img src=x onerror=document.title='owned'>", "\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07", "\\u202egnp.exe", "x" * 1000000, "名前 اسم שם नाम 🦀"]:
    print(line, flush=True)
${server}`);
  await page.getByLabel("Manifest").fill(hostile);
  await page.getByRole("button", { name: "Check and deploy" }).click();
  await page.getByRole("heading", { name: "demo/hostile" }).waitFor();
  assert.equal(await call("hostile"), 200);
  await page.goto(base + "services/demo/hostile/logs");
  await page.locator("#live.on").waitFor();
  const text = await page.locator("#log").innerText();
  assert.ok(text.includes("<img src=x") && text.includes("red") && !text.includes("\u001b") && text.includes("名前"), text.slice(0, 500));
  assert.equal(await page.locator("#log img").count(), 0);
  assert.ok(!(await page.title()).includes("owned"));
  // A stream that breaks goes on without a gap.
  for (let at = 0; at < 3; at++) await call("hostile", `/before-${at}`);
  await until("a line", async () => (await page.locator("#log").innerText()).includes("/before-2"));
  await desk.setOffline(true);
  for (let at = 0; at < 5; at++) await call("hostile", `/while-${at}`);
  await sleep(300);
  await desk.setOffline(false);
  await until("the lines of the gap", async () => (await page.locator("#log").innerText()).includes("/while-4"), 15000);
  const after = await page.locator("#log").innerText();
  for (let at = 0; at < 5; at++) assert.equal(after.split(`now /while-${at}`).length, 2, `line ${at} stands once`);
  say("hostile lines are tame, and a broken stream has no gap");

  await actions({ page, base, dir, api, call, program, until, say, picture });
  for (const name of ["hostile", "loops", "sleeper"]) {
    await page.goto(base + `services/demo/${name}/steer`);
    await page.getByText("Delete…").click();
    await page.getByLabel("Write its name").fill(name);
    await page.getByRole("button", { name: `Delete ${name}` }).click();
    await page.getByText("is deleted").waitFor();
    assert.equal((await api(`/v1/services/demo/${name}`)).status, 404);
  }

  // Every page: axe, light and dark, on a telephone.
  // On a quick machine the first one that is slow enough to be kept comes late.
  const kept = async () => (await api("/v1/services/demo/reports/requests?notable=true")).body.requests;
  await until("a request was kept", async () => (await kept()).length > 0, 30000);
  const [request] = await kept();
  PAGES.push(["request", `requests/${request.id}`], ["run", "runs/demo/" + (await api("/v1/runs/demo?workflow=fulfil&limit=1")).body.runs[0].id]);
  const state = await desk.storageState();
  const looks = {
    light: { colorScheme: "light" },
    // Whose clock is in another zone reads the platform's.
    dark: { colorScheme: "dark", timezoneId: "Pacific/Kiritimati" },
    small: { colorScheme: "light", viewport: { width: 360, height: 740 }, reducedMotion: "reduce" },
  };
  for (const [look, options] of Object.entries(looks)) {
    const looking = await context({ ...options, storageState: state });
    const tab = await looking.newPage();
    for (const [name, path] of PAGES) {
      await tab.goto(base + path);
      await tab.locator("main section, main ol").first().waitFor();
      // On a telephone what differs is the room.
      await accessible(tab, `${name}, ${look}`, { small: ["scrollable-region-focusable", "target-size"] }[look]);
      await picture(tab, `${name}-${look}`);
      const times = await tab.locator("td > time").evaluateAll((all) => all.map((it) => [it.innerText, it.dateTime]));
      for (const [shown, at] of times) assert.ok(at.slice(11, 19) === shown || !shown.includes(":"), `${name}: ${shown} for ${at}`);
      const charts = await tab.locator("figure.chart").count();
      if (charts) assert.ok(await tab.locator("#seconds-table table").count(), "each chart has its table");
    }
    await looking.close();
  }
  say(`${PAGES.length} pages without a violation: light, dark, 360 pixels`);

  // Without scripts, and at 200 %.
  const plain = await context({ javaScriptEnabled: false, storageState: state });
  const still = await plain.newPage();
  for (const [name, path] of PAGES) {
    await still.goto(base + path);
    assert.ok((await still.locator("main").innerText()).length > 60, `${name} reads without scripts`);
    if (["service", "run"].includes(name)) await picture(still, `${name}-without-scripts`);
  }
  await plain.close();
  const zoomed = await context({ viewport: { width: 640, height: 450 }, deviceScaleFactor: 2, storageState: state });
  const near = await zoomed.newPage();
  for (const [name, path] of PAGES.filter(([name]) => ["overview", "service", "steer", "run", "logs"].includes(name))) {
    await near.goto(base + path);
    await accessible(near, `${name} at 200 %`, ["scrollable-region-focusable"]);
    await picture(near, `${name}-zoomed`);
  }
  await zoomed.close();

  await readsOnly({ context, base, api, say });

  // By keyboard: from the top to a service, and its table of figures.
  await page.goto(base);
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  await page.keyboard.press("Enter");
  for (let at = 0; at < 30; at++) {
    await page.keyboard.press("Tab");
    if (await page.evaluate(() => document.activeElement.matches("#services th a"))) break;
  }
  // The page goes on under the reader's hands: the focus stays where it is.
  const place = await page.evaluate(() => document.activeElement.getAttribute("href"));
  await sleep(1500);
  assert.ok(await page.evaluate(() => document.activeElement.matches("#services th a")), "the focus stays");
  await page.keyboard.press("Enter");
  await page.waitForURL("**" + place);
  say(`by keyboard to ${place}`);

  if (pictures) {
    const shot = await context({ viewport: { width: 1180, height: 640 }, storageState: state });
    const tab = await shot.newPage();
    await tab.goto(base);
    await tab.locator("#live.on").waitFor();
    await sleep(1000);
    await tab.screenshot({ path: `${pictures}/console-overview.png` });
    await tab.setViewportSize({ width: 1180, height: 1000 });
    await tab.goto(base + "services/demo/thumbnails");
    await tab.locator("#live.on").waitFor();
    await sleep(1000);
    await tab.screenshot({ path: `${pictures}/console-service.png` });
  }
  assert.deepEqual(problems, [], "nothing went wrong in the browser, and nothing came from elsewhere");
  say("done");
} finally {
  await browser.close();
}
