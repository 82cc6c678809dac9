// The console's own script: toasts, theme, chat over a stream, and dropping files.
// Everything else is HTML that the server sends and htmx puts in place.

const $ = (selector, place = document) => place.querySelector(selector);
const $$ = (selector, place = document) => [...place.querySelectorAll(selector)];

// Toasts ---------------------------------------------------------------------------

let fading;
function toast(text, wrong = false) {
  const place = $("#toast");
  place.textContent = text;
  place.classList.toggle("wrong", wrong);
  place.hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => (place.hidden = true), wrong ? 9000 : 4500);
}
document.addEventListener("toast", (event) => toast(event.detail.text));
document.addEventListener("htmx:after:request", (event) => {
  // A line that comes with a page that is about to be loaded anew is shown there.
  const { ctx } = event.detail;
  const told = ctx.response?.headers.get("hx-trigger");
  if (told && ctx.hx?.refresh) sessionStorage.setItem("pfi-toast", JSON.parse(told).toast.text);
});
document.addEventListener("htmx:response:error", (event) => {
  if (!event.detail.ctx.hx?.redirect) toast(event.detail.ctx.text || "That did not work.", true);
});
document.addEventListener("htmx:error", () => toast("The server cannot be reached.", true));
const left = sessionStorage.getItem("pfi-toast");
if (left) {
  sessionStorage.removeItem("pfi-toast");
  toast(left);
}

// Theme ----------------------------------------------------------------------------

$("#theme")?.addEventListener("click", () => {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const next = (document.documentElement.dataset.theme || system) === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("pfi-theme", next);
});

// Sign-in link: the code is after the #, which no server or log ever sees -----------

const entry = $("#signin");
if (entry && location.hash.startsWith("#code=")) {
  entry.elements.code.value = location.hash.slice(6);
  history.replaceState(null, "", location.pathname);
  entry.elements.token.required = false;
  entry.submit();
}

// Chat -----------------------------------------------------------------------------

const ask = $("#ask");
if (ask) {
  const talk = $("#talk");
  const turns = [];
  let running = null;

  const compare = $("#compare");
  const kept = localStorage.getItem("pfi-compare");
  compare.checked = kept === null ? innerWidth >= 768 : kept === "1";
  const columns = () => talk.classList.toggle("single", !compare.checked);
  compare.addEventListener("change", () => {
    localStorage.setItem("pfi-compare", compare.checked ? "1" : "0");
    columns();
  });
  columns();

  const busy = (is) => {
    ask.classList.toggle("busy", is);
    $("#send").hidden = is;
    $("#stop").hidden = !is;
  };
  const stop = () => running?.abort();
  $("#stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => event.key === "Escape" && running && stop());
  ask.addEventListener("keydown", (event) => {
    const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing;
    if (sends && event.target.matches("#fields textarea")) {
      event.preventDefault();
      if (!running) ask.requestSubmit();
    }
  });
  ask.addEventListener("input", (event) => event.target.matches("textarea") && grow(event.target));
  const questions = () => $$("#fields textarea", ask);
  const begin = () => {
    stop();
    turns.length = 0;
    fitted = true;
    $$(".turn", talk).forEach((turn) => turn.remove());
  };
  let fitted = true; // until the oldest turns no longer fit, which is said once
  $("#task").addEventListener("change", () => ($("#named").value = "true"));
  $("#system").addEventListener("change", () => turns.length && begin());
  $("#new").addEventListener("click", () => {
    begin();
    questions()[0]?.focus();
  });

  // Streams an answer into a turn's columns; the lines that end them by column, or null.
  async function receive(form, turn) {
    running = new AbortController();
    busy(true);
    const ends = {};
    let wrong = "";
    try {
      const reply = await fetch(ask.action, {
        method: "POST",
        body: form,
        signal: running.signal,
        headers: { Accept: "application/x-ndjson" },
      });
      if (reply.status === 401) return location.assign(ask.dataset.signin);
      if (!reply.ok) throw new Error(await reply.text());
      for await (const line of lines(reply.body)) {
        const place = line.column && $(`.${line.column}`, turn);
        if (!place) continue;
        const text = $(".text", place);
        if (line.text) text.textContent += line.text;
        if (line.whole !== undefined) {
          text.textContent = line.whole || "(no answer)";
          ends[line.column] = line;
          const cut = $(".cut", place);
          cut.hidden = !line.cut;
          $("span", cut).textContent = `(cut at ${line.cut} tokens)`;
          if (line.dropped && fitted) {
            fitted = false;
            toast("The oldest turns no longer fit, and are left out from here on.");
          }
        }
        if (line.error) {
          text.textContent = line.error;
          place.classList.add("wrong");
          if (line.column === "mine") wrong = line.error;
        }
        if (line.whole !== undefined || line.error) place.classList.remove("waiting");
        if (line.foot) {
          $(".foot", place).innerHTML = line.foot; // from a template that escapes all text
          htmx.process(place);
        }
        turn.scrollIntoView({ block: "end" });
      }
    } catch (error) {
      wrong = error.name === "AbortError" ? "" : error.message || "The server cannot be reached.";
      $$(".waiting", turn).forEach((place) => {
        place.classList.remove("waiting");
        place.classList.add("stopped");
      });
      if (wrong && !form.has("more")) turn.remove();
    } finally {
      running = null;
      busy(false);
    }
    if (wrong) toast(wrong, true); // what was written stays in its field
    return wrong ? null : ends;
  }

  ask.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    const form = new FormData(ask);
    const asked = questions().map((field) => field.value.trim());
    if (!asked.every(Boolean)) return toast("Write a question first.", true);
    form.set("compare", compare.checked ? "true" : "false");
    form.set("turns", JSON.stringify(turns));
    const turn = $("#turn").content.firstElementChild.cloneNode(true);
    $(".question", turn).textContent = asked.join("\n");
    if (!compare.checked) $(".generic", turn).remove();
    talk.append(turn);
    $("#hello")?.remove();
    turn.scrollIntoView({ block: "end" });
    const ends = await receive(form, turn);
    if (!ends) return;
    const mine = ends.mine;
    const partial = $(".mine .text", turn).textContent; // of an answer that was stopped
    const answer = mine ? mine.whole : partial;
    if (answer && turn.isConnected) {
      const said = ["assistant", answer];
      turns.push(["user", mine?.asked || asked.join("\n")], said);
      let raw = mine?.raw;
      $(".cut button", turn).addEventListener("click", async () => {
        if (running) return;
        form.set("more", raw);
        $(".mine .cut", turn).hidden = true;
        $(".mine .text", turn).textContent = raw;
        const next = (await receive(form, turn))?.mine;
        if (!next) return;
        raw = next.raw;
        said[1] = next.whole;
      });
    }
    questions().forEach((field) => {
      field.value = "";
      grow(field);
    });
    questions()[0]?.focus();
  });
  questions()[0]?.focus({ preventScroll: true });
  talk.lastElementChild?.scrollIntoView({ block: "end" });
}

function grow(field) {
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, 220)}px`;
}

async function* lines(body) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of chunks(body)) {
    rest += decoder.decode(chunk, { stream: true });
    const whole = rest.split("\n");
    rest = whole.pop();
    for (const line of whole) if (line) yield JSON.parse(line);
  }
}

async function* chunks(body) {
  const reader = body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

// Dropping files -------------------------------------------------------------------

const drop = $("#import");
if (drop) {
  let files = [];
  const zone = $("#drop");
  const chosen = (found) => {
    // Of a repository only its history is needed.
    const history = found.filter(([, path]) => path.includes(".git/"));
    files = history.length ? history : found;
    const names = [...new Set(files.map(([, path]) => path.split("/")[0]))].join(", ");
    $("#chosen").textContent = files.length ? `${names} (${files.length} files)` : "";
    if (files.length === 1) $("#chosen").textContent = names;
    $("#go").disabled = !files.length;
  };
  $("#files").addEventListener("change", (event) =>
    chosen([...event.target.files].map((file) => [file, file.webkitRelativePath || file.name])));
  $("#folder").addEventListener("change", (event) =>
    chosen([...event.target.files].map((file) => [file, file.webkitRelativePath || file.name])));
  for (const name of ["dragenter", "dragover"]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", async (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
    const plain = [...event.dataTransfer.files].map((file) => [file, file.name]);
    chosen(entries.every(Boolean) ? (await Promise.all(entries.map(walk))).flat() : plain);
  });
  document.addEventListener("htmx:config:request", (event) => {
    const { request } = event.detail.ctx;
    if (event.target !== drop) return;
    request.body.delete("files");
    for (const [file, path] of files) request.body.append("files", file, path);
  });
}

async function walk(entry) {
  const path = entry.fullPath.replace(/^\//, "");
  if (entry.isFile) return [[await new Promise((ok, no) => entry.file(ok, no)), path]];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((ok, no) => reader.readEntries(ok, no));
    if (!some.length) return found;
    for (const one of some) found.push(...(await walk(one)));
  }
}
