// Every action of the console, done by a click: each is seen in the admin API, and in the audit log. See `run` beside it.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

// A service that refuses whatever it is asked for until it is told otherwise.
const flips = (edition) => `
import http.server, os
fine = False
class Flips(http.server.BaseHTTPRequestHandler):
    def answer(self):
        global fine
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        if self.path.startswith("/flip/"):
            fine = self.path == "/flip/fine"
        said = fine or self.path.startswith("/flip/")
        self.send_response(200 if said else 503)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"edition": ${edition}}')
    do_GET = do_POST = answer
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Flips).serve_forever()
`;

const EVENTS = `apiVersion: sas.dev/v1
kind: Trigger
metadata: {name: refused, namespace: demo}
spec:
  source: {kind: broker, options: {broker: shop}}
  filter: {exact: {type: look.refused}}
  target: {service: flips, path: /events}
  delivery: {retry: 0, circuitFailures: 50}
---
apiVersion: sas.dev/v1
kind: Workflow
metadata: {name: look, namespace: demo}
spec:
  document: {dsl: '1.0.3', version: '1.0.0'}
  do:
    - ask: {call: flips, with: {item: '\${ .item }'}}
    - parcel: {listen: {to: {one: {with: {type: parcel.sent}}}}}
    - done: {set: {parcel: '\${ .[0].number }'}}
`;

export async function actions({ page, base, dir, api, call, program, until, say, picture }) {
  const click = (name) => page.getByRole("button", { name, exact: true }).click();
  const said = (text) => page.locator("p.said.fine").filter({ hasText: text }).first().waitFor();
  const steer = () => page.goto(base + "services/demo/flips/steer");
  const service = async () => (await api("/v1/services/demo/flips")).body;
  // By revision: of the same one several targets may be.
  const shares = async () => {
    const by = {};
    for (const it of (await service()).traffic) by[it.revisionName] = (by[it.revisionName] ?? 0) + it.percent;
    return by;
  };
  const apply = async (text, annotations = "") => {
    const sent = await api("/v1/services", { method: "POST", body: text.replace("  annotations:\n", `  annotations:\n${annotations}`) });
    assert.ok(sent.status < 300, JSON.stringify(sent.body));
    return sent.body.applied[0]?.revision;
  };
  const rolling = `    serving.knative.dev/rollout-duration: 600s\n`;
  const flip = async (to) => assert.equal(await call("flips", `/flip/${to}`), 200);
  const edition = (number) => program(`flips-${number}`, flips(number)).replace(`name: flips-${number}`, "name: flips")
    .replace("    spec:\n", "    metadata: {annotations: {autoscaling.knative.dev/min-scale: '1'}}\n    spec:\n");

  // A package that is dropped on the form is sent, and deployed by the manifest that names it.
  program("dropped", flips(1));
  execFileSync("zip", ["-qj", `${dir}/dropped.zip`, `${dir}/dropped/main.py`]);
  await page.goto(base + "deploy");
  const bytes = readFileSync(`${dir}/dropped.zip`).toString("base64");
  const dropped = await page.evaluateHandle((text) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([Uint8Array.from(atob(text), (it) => it.charCodeAt(0))], "dropped.zip"));
    return transfer;
  }, bytes);
  await page.dispatchEvent("#manifest", "drop", { dataTransfer: dropped });
  await page.locator("#drop-said").filter({ hasText: "dropped.zip is here" }).waitFor();
  const written = await page.getByLabel("Manifest").inputValue();
  assert.match(written, /sas.dev\/package: sha256:[0-9a-f]{64}/);
  await page.getByLabel("Manifest").fill(written.replace("name: dropped", "name: dropped\n  namespace: demo"));
  await click("Check and deploy");
  await page.getByRole("heading", { name: "demo/dropped" }).waitFor();
  assert.equal(await call("dropped", "/flip/fine"), 200);
  await api("/v1/services/demo/dropped", { method: "DELETE" });
  say("a package was dropped, deployed and asked");

  // A test run, with its phases.
  const first = await apply(edition(1), rolling);
  await steer();
  await page.locator("form[action$=test]").getByLabel("Path").fill("/flip/fine");
  await click("Send");
  await said("200 from flips");
  const report = await page.locator("p.said").innerText();
  assert.match(report, /first byte [\d.]+ m?s, all [\d.]+ m?s/, report);
  say(`a test run: ${report.slice(0, 130)}`);

  // A roll-out: ended at once, and stopped.
  await until("the first revision", async () => (await service()).traffic[0]?.percent === 100);
  const second = await apply(edition(2), rolling);
  await until("a roll-out", async () => (await service()).rollout?.state === "moving");
  await steer();
  await click("Promote now");
  await said("promote is done");
  await until("all traffic", async () => (await shares())[second] === 100);
  const third = await apply(edition(3), rolling);
  await until("another roll-out", async () => (await service()).rollout?.to === third && (await service()).rollout?.state === "moving");
  await steer();
  assert.ok(!(await page.getByRole("button", { name: "Stop the roll-out" }).isVisible()), "what harms is confirmed");
  await page.getByText("Stop…").click();
  await click("Stop the roll-out");
  await said("stop is done");
  await until("the traffic is back", async () => (await shares())[second] === 100);
  assert.equal((await service()).rollout.state, "stopped");
  say("a roll-out was promoted, and another one stopped");

  // Traffic, and back.
  await steer();
  for (const [revision, percent] of [[first, 30], [second, 70], [third, 0]]) await page.getByLabel(revision, { exact: true }).fill(String(percent));
  await click("Move the traffic");
  await said("The traffic of demo/flips moves");
  await until("the shares", async () => (await shares())[first] === 30 && (await shares())[second] === 70);
  await page.getByText("Roll back…").click();
  await page.locator("#rollback select").selectOption(first);
  await click("Roll back");
  await said("is rolled back");
  await until("the one before", async () => (await shares())[first] === 100);
  say("traffic moved, and was rolled back");

  // A dead letter is delivered again, another one forgotten; a trigger is paused, and goes on.
  await api("/v1/services", { method: "POST", body: EVENTS });
  await flip("refuse");
  const event = async (id) => {
    const body = JSON.stringify({ specversion: "1.0", id, source: "/look", type: "look.refused", data: { id } });
    const sent = await api("/v1/brokers/demo/shop/events", { method: "POST", body, headers: { "content-type": "application/cloudevents+json" } });
    assert.ok(sent.status < 300, JSON.stringify(sent.body));
  };
  const letters = async () => (await api("/v1/triggers/demo/refused/deadletters")).body?.deadLetters?.length ?? 0;
  await event("one");
  await until("a dead letter", async () => (await letters()) === 1);
  await page.goto(base + "events/demo/refused");
  await page.locator("#letters tbody tr").first().waitFor();
  await flip("fine");
  await click("Deliver dead letters again");
  await said("1 were delivered, 0 failed again");
  assert.equal(await letters(), 0);
  await flip("refuse");
  await event("two");
  await until("another dead letter", async () => (await letters()) === 1);
  await page.goto(base + "events/demo/refused");
  await page.getByText("Forget them…").click();
  await click("Forget all of them");
  await said("1 dead letters are forgotten");
  assert.equal(await letters(), 0);
  const paused = async () => (await api("/v1/triggers")).body.triggers.find((it) => it.name === "demo/refused").paused;
  await click("Pause");
  await said("is paused");
  assert.equal(await paused(), true);
  await click("Let it go on");
  await said("goes on.");
  assert.equal(await paused(), false);
  say("dead letters were delivered again and forgotten; a trigger was paused, and goes on");

  // Runs of a workflow: started, begun anew, told of an event, suspended, resumed, skipped, cancelled.
  const run = async (id) => (await api(`/v1/runs/demo/${id}`)).body;
  const stands = (id, status) => until(`${id} is ${status}`, async () => (await run(id)).status === status);
  const start = async (id) => {
    await page.goto(base + "workflows/demo/look");
    await page.getByText("Start a run…").click();
    await page.getByLabel("Id").fill(id);
    await page.getByLabel("Input, in JSON").fill('{"item": "bicycle"}');
    await click("Start");
    await page.getByRole("heading", { name: `demo/${id}` }).waitFor();
  };
  await start("look-1");
  await stands("look-1", "faulted");
  await page.locator("#state .light.failing").waitFor();
  await page.locator("#steps tr.failing").first().waitFor();
  // The picture is there, and is another one when the run has gone on.
  const drawn = () => page.locator("img.graph").evaluate((it) => it.complete && it.naturalWidth > 100 && it.currentSrc);
  const before = await until("a picture", drawn);
  await picture(page, "run-faulted-light");
  await flip("fine");
  await click("Retry the step that failed");
  await said("goes on from the step that failed");
  await page.locator("#steps").getByText("waits for an event").waitFor();
  await until("another picture", async () => { const now = await drawn(); return now && now !== before; });
  await page.getByText("Send an event…").click();
  await page.getByLabel("Type").fill("parcel.sent");
  await page.getByLabel("Data, in JSON").fill("no json");
  await click("Send it");
  await page.getByRole("alert").filter({ hasText: "is no JSON" }).waitFor();
  await page.getByText("Send an event…").click();
  await page.getByLabel("Type").fill("parcel.sent");
  await page.getByLabel("Data, in JSON").fill('{"number": 7}');
  await click("Send it");
  await said("has the event");
  await stands("look-1", "completed");
  assert.deepEqual((await run("look-1")).output, { parcel: 7 });
  await page.getByLabel("The output").filter({ hasText: "7" }).waitFor();
  await flip("refuse");
  await start("look-2");
  await stands("look-2", "faulted");
  await page.getByText("Skip a step…").click();
  await page.getByLabel("What it gave, in JSON").fill('{"by": "hand"}');
  await click("Skip it");
  await said("goes on as if");
  await stands("look-2", "running");
  await click("Suspend");
  await said("is suspended");
  await stands("look-2", "suspended");
  await click("Let it go on");
  await said("goes on.");
  await stands("look-2", "running");
  assert.ok(!(await page.getByRole("button", { name: "Cancel the run" }).isVisible()), "what harms is confirmed");
  await page.getByText("Cancel…").click();
  await click("Cancel the run");
  await said("is cancelled");
  await stands("look-2", "cancelled");
  await page.goto(base + "workflows?namespace=demo&workflow=look&status=cancelled");
  assert.deepEqual(await page.locator("#runs tbody th").allInnerTexts(), ["look-2"]);
  say("runs were started, begun anew, told, skipped, suspended, resumed and cancelled");

  // Off and on, and gone.
  await steer();
  await page.getByText("Switch off…").click();
  await page.getByLabel("Why").fill("for a look");
  await click("Switch flips off");
  await said("is switched off");
  assert.equal((await service()).disabled.reason, "for a look");
  await click("Switch on again");
  await said("switched on again");
  assert.ok(!(await service()).disabled);
  await page.getByText("Delete…").click();
  await page.getByLabel("Write its name").fill("flip");
  await click("Delete flips");
  await page.getByRole("alert").filter({ hasText: "nothing was deleted" }).waitFor();
  await page.getByText("Delete…").click();
  await page.getByLabel("Write its name").fill("flips");
  await click("Delete flips");
  await said("is deleted");
  assert.equal((await api("/v1/services/demo/flips")).status, 404);

  // Each is in the audit log under the token's name, but for the test run, which changes nothing.
  const audit = (await api("/v1/audit?limit=500")).body.records;
  const [of, trigger, runs] = ["/v1/services/demo/flips", "/v1/triggers/demo/refused", "/v1/runs/demo"];
  const done = [
    ["POST", `${of}/rollout`, 2], ["PUT", `${of}/traffic`, 1], ["POST", `${of}/rollback`, 1], ["POST", `${of}/disable`, 1], ["POST", `${of}/enable`, 1],
    ["DELETE", of, 1], ["POST", "/v1/packages", 1], ["POST", `${trigger}/redrive`, 1], ["DELETE", `${trigger}/deadletters`, 1], ["POST", `${trigger}/pause`, 1],
    ["POST", `${trigger}/resume`, 1], ["POST", "/v1/workflows/demo/look/runs", 2], ["POST", `${runs}/look-1/retry`, 1], ["POST", `${runs}/look-1/events`, 1],
    ["POST", `${runs}/look-2/skip`, 1], ["POST", `${runs}/look-2/suspend`, 1], ["POST", `${runs}/look-2/resume`, 1], ["POST", `${runs}/look-2/cancel`, 1],
  ];
  for (const [method, path, times] of done) {
    const found = audit.filter((it) => it.method === method && it.path === path && it.status < 300 && it.principal === "admin");
    assert.equal(found.length, times, `${method} ${path} in the audit log`);
  }
  await page.goto(base + "audit");
  await page.getByText(`${runs}/look-2/cancel`).waitFor();
  say(`${done.length} kinds of changes are in the audit log`);
}

// What a token that may only look sees and gets: no button, and 403 for each form that it makes by hand.
export async function readsOnly({ context, base, api, say }) {
  const asked = JSON.stringify({ name: "reader", scopes: ["read"], namespace: "demo" });
  const made = await api("/v1/tokens", { method: "POST", body: asked, headers: { "content-type": "application/json" } });
  const guest = await context({});
  const page = await guest.newPage();
  await page.goto(base);
  await page.getByLabel("Token").fill(made.body.token);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Services" }).waitFor();
  for (const path of ["", "services/demo/storefront", "services/demo/storefront/steer", "events/demo/paid", "workflows", "workflows/demo/fulfil", "runs/demo/look-2", "deploy"]) {
    await page.goto(base + path);
    const buttons = await page.getByRole("button").allInnerTexts();
    assert.deepEqual(buttons.filter((text) => !["Sign out", "Show", "Look up"].includes(text)), [], path);
  }
  const mark = await page.locator("input[name=form]").first().getAttribute("value");
  const forms = [
    ["traffic", { service: "storefront" }], ["rollout", { service: "storefront", action: "stop" }], ["rollback", { service: "storefront" }],
    ["disable", { service: "storefront" }], ["delete", { service: "storefront", confirm: "storefront" }], ["test", { service: "storefront", path: "/" }],
    ["trigger-redrive", { trigger: "demo/paid" }], ["trigger-discard", { trigger: "demo/paid" }], ["trigger-pause", { trigger: "demo/paid" }],
    ["run-start", { workflow: "fulfil" }], ["run-cancel", { run: "look-2" }], ["run-retry", { run: "look-2" }], ["run-skip", { run: "look-2", step: "x" }],
    ["run-event", { run: "look-2", type: "x" }], ["deploy", { manifest: "kind: Service" }],
  ];
  for (const [action, fields] of forms) {
    const status = await page.evaluate(async ([action, fields]) => {
      const body = new URLSearchParams({ namespace: "demo", ...fields });
      return (await fetch(`/console/do/${action}`, { method: "POST", body, redirect: "manual" })).status;
    }, [action, { ...fields, form: mark }]);
    assert.equal(status, 403, action);
  }
  await guest.close();
  say(`a reader sees no button, and gets 403 for ${forms.length} forms made by hand`);
}
