// The page: its state is the server's board; this shows it and sends what a hand changed.

import { COLORS, Editor, drawBox, shape } from "./boxes.js";

const $ = (id) => document.getElementById(id);
const SIDES = ["with", "without"];
const editor = new Editor($("stage"), () => save(), () => listBoxes());
let board = null;
let asking = null;
let saving = Promise.resolve();
let saves = 0;

// -- talking with the server ------------------------------------------------------------------------------------------

async function send(method, path, body, options = {}) {
  const answer = await fetch(path, { method, body, ...options });
  if (!answer.ok) {
    const fault = await answer.json().catch(() => null);
    throw new Error(fault?.error?.message ?? `the server answered with status ${answer.status}`);
  }
  return answer;
}

const post = async (name, body, options) => send("POST", `boards/${board.key}/${name}`, JSON.stringify(body), options);

function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

/** Run something and say what went wrong, if anything did. */
async function attempt(work) {
  say("");
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error instanceof TypeError ? "the server cannot be reached" : error.message);
    return null;
  }
}

// -- picture and boxes ------------------------------------------------------------------------------------------------

async function open(query, file) {
  asking?.abort();
  const found = await attempt(async () => (await send("POST", `boards${query}`, file)).json());
  if (!found) return;
  board = found;
  editor.show(`boards/${board.key}/picture`, board.width, board.height);
  clear();
  show(found);
  $("hint").textContent = "Drag on the picture to draw a box; drag a box to move it, its corners to change it; Delete removes it.";
}

function show(found) {
  editor.boxes = found.boxes;
  editor.chosen = Math.min(editor.chosen, found.boxes.length - 1);
  editor.render();
  listBoxes();
  if (!$("input").hidden) receive();
}

/** Send the boxes as they are now, after what was sent before; the answer counts unless more was changed meanwhile. */
async function save() {
  const [own, number] = [board, ++saves];
  const boxes = JSON.stringify({ boxes: editor.boxes });
  hideShares();
  const put = async () => (await send("PUT", `boards/${own.key}/boxes`, boxes)).json();
  saving = saving.then(() => attempt(put));
  const found = await saving;
  if (found && own.key === board.key) board = found;
  if (number === saves && own.key === board.key) show(structuredClone(board));
}

function remove(number) {
  editor.boxes.splice(number, 1);
  editor.chosen = -1;
  save();
}

function make(parent, name, properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  parent.append(made);
  return made;
}

function listBoxes() {
  const body = $("boxes").tBodies[0];
  const cell = document.activeElement?.closest("#boxes td");
  const [place, rows] = [cell && [cell.parentNode.sectionRowIndex, cell.cellIndex], body.rows.length];
  const typed = document.activeElement?.value;
  body.replaceChildren();
  editor.boxes.forEach((one, number) => {
    const row = make(body, "tr", { className: number === editor.chosen ? "chosen" : "" });
    const on = make(make(row, "td"), "input", { type: "checkbox", checked: one.on, ariaLabel: `box ${number + 1} on` });
    on.onchange = () => { one.on = on.checked; save(); };
    const name = make(make(row, "td"), "input", { value: one.label, maxLength: 200, ariaLabel: `name of box ${number + 1}` });
    name.style.color = COLORS[number % COLORS.length];
    name.onchange = name.onblur = () => {
      if (editor.boxes[number] !== one || name.value === one.label) return;
      one.label = name.value;
      save();
    };
    make(row, "td", { textContent: one.score.toFixed(2) });
    make(row, "td", { textContent: one.box.map((value) => value.toFixed(0)).join(", ") });
    const gone = make(make(row, "td"), "button", { textContent: "Delete", ariaLabel: `delete box ${number + 1}` });
    gone.onclick = () => remove(number);
  });
  const again = place && body.rows[place[0]]?.cells[place[1]]?.firstChild; // who types goes on typing
  if (!again) return;
  if (again.type === "text" && rows === body.rows.length) again.value = typed;
  again.focus();
}

function switchAll(on) {
  editor.boxes.forEach((one) => { one.on = on; });
  if (board) save();
}

// -- questions --------------------------------------------------------------------------------------------------------

function turn(side, kind, text) {
  return make($(`turns-${side}`), "p", { className: kind, textContent: text });
}

/** Objects of the events of a stream. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data) yield JSON.parse(data);
    }
  }
}

async function ask() {
  const question = $("question").value.trim();
  if (!board || asking) return say(board ? "" : "choose a picture first");
  if (!question) return say("type a question first");
  const sides = $("both").checked ? SIDES : ["with"];
  asking = new AbortController();
  busy(true);
  hideShares();
  const lines = Object.fromEntries(sides.map((side) => [side, [turn(side, "human", question), turn(side, "gpt", "")]]));
  const open = new Set(sides);
  await attempt(async () => {
    await saving;
    const answer = await post("ask", { question, sides }, { signal: asking.signal });
    for await (const event of events(answer)) {
      const line = lines[event.side][1];
      if (event.piece) line.textContent += event.piece;
      if (event.answer === undefined && event.error === undefined) continue;
      line.className = event.error ? "fault" : "gpt";
      line.textContent = event.error ?? (event.answer || "(no words)");
      open.delete(event.side);
      $(`why-${event.side}`).disabled = Boolean(event.error);
    }
  });
  for (const side of open) lines[side].forEach((line) => line.remove()); // a question without an answer is none
  asking = null;
  busy(false);
  if (open.size === 0) $("question").select();
}

function busy(is) {
  $("send").disabled = is;
  $("stop").hidden = !is;
  $("reset").disabled = is;
}

function clear() {
  for (const side of SIDES) {
    $(`turns-${side}`).replaceChildren();
    $(`why-${side}`).disabled = true;
  }
  hideShares();
}

// -- what contributed -------------------------------------------------------------------------------------------------

function hideShares() {
  editor.heat = null;
  $("shares").hidden = $("plain").hidden = true;
  editor.render();
}

function share(title, value, most) {
  const row = make($("share-rows"), "tr");
  make(row, "td", { textContent: title });
  make(row, "td", { textContent: value.toFixed(2).replace(/^-(0\.00)$/, "$1") });
  const bar = make(make(row, "td"), "span", { className: value < 0 ? "bar against" : "bar" });
  bar.style.width = `${(9 * Math.abs(value)) / most}em`;
}

async function explain(side) {
  const found = await attempt(async () => (await post("contributions", { side })).json());
  if (!found) return;
  $("shares-title").textContent = `What contributed to the last answer ${side === "with" ? "with the" : "without"} boxes`;
  const score = `Log-probability of the answer: ${found.score.toFixed(2)}.`;
  const nowhere = found.visual ? "The visual tokens are on no grid of the picture." : "What is seen is in the LLM's layers, where nothing is left out.";
  const where = found.regions ? "On the picture: its regions, red for the answer and blue against it." : nowhere;
  $("method").textContent = `${found.method} ${score} ${where}`;
  $("share-rows").replaceChildren();
  const rows = found.objects.map((one, number) => [`box token ${number + 1}: ${one.label || "(no name)"}`, one.share]);
  if (found.stand_in !== null) rows.push(["stand-in for no box", found.stand_in]);
  if (found.objects.length > 1) rows.push(["all box tokens together", found.every_object]);
  found.crops.forEach((value, number) => rows.push([`object image ${number + 1}`, value]));
  if (found.visual) rows.push(["all visual tokens together", found.every_region]);
  const most = Math.max(...rows.map(([, value]) => Math.abs(value))) || 1;
  for (const [title, value] of rows) share(title, value, most);
  editor.heat = found.regions && found;
  editor.render();
  $("shares").hidden = $("plain").hidden = false;
}

// -- what the model receives ------------------------------------------------------------------------------------------

async function receive() {
  if (!board) return;
  const question = $("question").value.trim() || "?";
  const found = await attempt(async () => (await post("input", { question })).json());
  if (!found) return;
  const svg = $("canvas");
  svg.setAttribute("viewBox", `0 0 ${found.size} ${found.size}`);
  svg.replaceChildren();
  shape(svg, "image", { href: found.canvas, width: found.size, height: found.size });
  $("fates").replaceChildren();
  found.boxes.forEach((one, number) => {
    const kept = one.token !== null;
    const stroke = COLORS[number % COLORS.length];
    drawBox(svg, one.box, found.size / 100, { class: kept ? "box" : "box off", stroke }, kept ? `${one.token + 1}` : "");
    const row = make($("fates"), "tr");
    const state = kept ? `box token ${one.token + 1}` : one.reason;
    for (const text of [one.label || "(no name)", state, one.box.map((value) => value.toFixed(1)).join(", ")]) {
      make(row, "td", { textContent: text });
    }
  });
  const { text, visual, boxes, crops, all } = found.tokens;
  const rest = crops ? `, ${crops} of object images` : "";
  $("tokens").textContent = `${all} tokens: ${text} of text, ${visual} of the picture, ${boxes} of boxes${rest}`;
  $("prompt").textContent = found.prompt;
}

function tab(name) {
  for (const one of ["ask", "input"]) {
    $(one).hidden = one !== name;
    $(`tab-${one}`).setAttribute("aria-selected", String(one === name));
  }
  if (name === "input") receive();
}

// -- begin ------------------------------------------------------------------------------------------------------------

$("file").onchange = () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) open("", file);
};
$("left").ondragover = (event) => event.preventDefault();
$("left").ondrop = (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) open("", file);
};
$("form").onsubmit = (event) => { event.preventDefault(); ask(); };
$("stop").onclick = () => asking?.abort();
$("reset").onclick = () => attempt(async () => { if (board) await post("reset", {}); clear(); });
$("both").onchange = () => { $("column-without").hidden = !$("both").checked; };
$("all").onclick = () => switchAll(true);
$("none").onclick = () => switchAll(false);
$("plain").onclick = hideShares;
for (const side of SIDES) $(`why-${side}`).onclick = () => explain(side);
for (const one of ["ask", "input"]) $(`tab-${one}`).onclick = () => tab(one);
document.onkeydown = (event) => {
  const isTyping = event.target instanceof HTMLInputElement && event.target.type !== "checkbox";
  if ((event.key === "Delete" || event.key === "Backspace") && !isTyping && editor.chosen >= 0) remove(editor.chosen);
};

attempt(async () => {
  const about = await (await send("GET", "about")).json();
  $("title").textContent = document.title = about.title;
  about.examples.forEach((name, number) => {
    const button = make($("examples"), "button", { title: name, ariaLabel: `example ${name}` });
    make(button, "img", { src: `examples/${number}`, alt: "", loading: "lazy" });
    button.onclick = () => open(`?example=${number}`, "");
  });
});
