// Keeps a page going: takes the parts that have changed from the platform, and puts them in place without losing where the
// reader is. Pages can be read and used without it.

const pulse = document.getElementById("live");
let stream = null;
let follows = pulse?.dataset.follows ?? null;
let overdue = 0;

function say(state, text) {
  if (pulse.textContent !== text) pulse.textContent = text;
  pulse.className = "pulse " + state;
}

// Makes one element like another, and keeps what is the reader's own: the focus, what is open, what is typed.
function become(old, next) {
  if (old.nodeType !== next.nodeType || old.nodeName !== next.nodeName || old.id !== next.id) {
    old.replaceWith(next);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== next.nodeValue) old.nodeValue = next.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!next.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old === document.activeElement && ["INPUT", "SELECT", "TEXTAREA"].includes(old.nodeName)) return;
  const [before, after] = [[...old.childNodes], [...next.childNodes]];
  after.forEach((child, at) => (at < before.length ? become(before[at], child) : old.append(child)));
  before.slice(after.length).forEach((child) => child.remove());
}

// Parts that came while text in them was selected: the platform sends each change once.
const waiting = new Map();

function part(data) {
  const end = data.indexOf("\n");
  const id = data.slice(0, end);
  const place = document.getElementById(id);
  const selection = getSelection();
  waiting.delete(id);
  if (!place) return;
  // Text that is being selected stays as it is until it is no longer.
  if (!selection.isCollapsed && place.contains(selection.anchorNode)) {
    waiting.set(id, data);
    return;
  }
  const holder = document.createElement("template");
  holder.innerHTML = data.slice(end + 1);
  const next = place.cloneNode(false);
  next.append(holder.content);
  become(place, next);
}

document.addEventListener("selectionchange", () => {
  if (waiting.size && getSelection().isCollapsed) [...waiting.values()].forEach(part);
});

function lines(data) {
  const log = document.getElementById("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  log.insertAdjacentHTML("beforeend", data);
  while (log.childElementCount > 1000) log.firstElementChild.remove();
  document.getElementById("no-lines")?.remove();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function open() {
  if (stream || document.hidden) return;
  const query = new URLSearchParams({ page: pulse.dataset.live });
  if (follows !== null) query.set("after", follows);
  stream = new EventSource("/console/live?" + query);
  stream.onopen = () => say("on", "live");
  // The browser opens it again by itself, unless it was refused.
  stream.onerror = () => {
    say("late", "not connected: this page is old");
    if (stream?.readyState === EventSource.CLOSED) {
      const refused = stream.url;
      close();
      // The stream does not say why it was refused; a session that has ended is mended by its owner alone.
      const asked = new AbortController();
      fetch(refused, { signal: asked.signal }).then(
        (answer) => {
          if (answer.status === 401) {
            clearTimeout(overdue);
            say("late", "signed out: load this page to sign in again");
          }
          asked.abort();
        },
        () => {},
      );
      clearTimeout(overdue);
      overdue = setTimeout(open, 3000);
    }
  };
  stream.addEventListener("part", (event) => {
    say("on", "live");
    part(event.data);
  });
  stream.addEventListener("lines", (event) => {
    follows = event.lastEventId;
    lines(event.data);
  });
  stream.addEventListener("problem", (event) => say("late", event.data));
  stream.addEventListener("fine", () => say("on", "live"));
  stream.addEventListener("over", () => {
    close();
    location.reload();
  });
}

function close() {
  stream?.close();
  stream = null;
}

if (pulse?.dataset.live) {
  say("late", "connecting");
  open();
  // A browser keeps few connections to a host: a page that nobody sees holds none.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
} else if (pulse) {
  say("", "");
}

const log = document.getElementById("log");
if (log) log.scrollTop = log.scrollHeight;

// Files that are dropped on the form of a deploy.
const drop = document.querySelector("textarea[data-drop]");
if (drop) {
  const said = document.getElementById("drop-said");
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (!file) return;
    if (/\.(ya?ml|json)$/i.test(file.name)) {
      drop.value = await file.text();
      said.textContent = file.name + " is written here. Read it, then deploy.";
      return;
    }
    said.textContent = file.name + " is being sent…";
    const form = new URLSearchParams({ name: file.name });
    const token = drop.form.elements.form.value;
    const answer = await fetch("/console/do/package?" + form, { method: "POST", body: file, headers: { "x-form": token } });
    const text = await answer.text();
    if (!answer.ok) {
      said.textContent = text;
      return;
    }
    drop.value = text;
    said.textContent = file.name + " is here. Give the service its name, then deploy.";
  });
}
