// The page: a picture is opened, its top class explained, and another class as soon as it is chosen.

import { showClasses, markExplained } from "./classes.ts";
import { colormap, gradient } from "./colormap.ts";
import { element } from "./elements.ts";
import { Engine } from "./engine.ts";
import { type Model, readJson } from "./model.ts";
import { type Candidate, candidates, percent } from "./prediction.ts";
import type { Explanation, Picture } from "./protocol.ts";
import { listenForFiles, markSample, showSamples } from "./sources.ts";
import { drawHeatmap, drawPicture } from "./stage.ts";

const TOP_CLASS = -1;

const stage = element("stage", HTMLElement);
const pictureCanvas = element("picture", HTMLCanvasElement);
const heatmapCanvas = element("heatmap", HTMLCanvasElement);
const classes = element("classes", HTMLElement);
const opacity = element("opacity", HTMLInputElement);
const status = element("status", HTMLElement);
const note = element("note", HTMLElement);
const alert = element("alert", HTMLElement);

const engine = new Engine();
let model: Model;
let current: { picture: Picture; name: string } | undefined;
let latest = 0; // answers to a question that is not the latest are dropped

async function start(): Promise<void> {
  status.textContent = "Loading the model …";
  model = await readJson<Model>("model.json");
  describeModel();
  const [samples] = await Promise.all([
    readJson<string[]>("samples/index.json"),
    engine.ask("load", { model: new URL("model.onnx", document.baseURI).href, preprocessing: model.preprocessing }),
  ]);
  status.textContent = "Choose a picture.";
  document.body.classList.remove("loading");
  listenForFiles(open);
  showSamples(samples, open);
}

function describeModel(): void {
  const colours = colormap(!model.relu);
  element("legend", HTMLElement).style.background = gradient(colours);
  element("lowest", HTMLElement).textContent = String(colours.lowest);
  element("highest", HTMLElement).textContent = String(colours.highest);
  const each = model.probability === "sigmoid" ? "each on its own; " : "";
  element("hint", HTMLElement).textContent = `${each}choose one to explain`;
  const place = model.layer === null ? "" : ` at ${model.layer}`;
  element("model", HTMLElement).textContent = `${model.model}, explained by ${model.method}${place}`;
}

function open(file: Blob, name: string): void {
  void latestOnly(async (isLatest) => {
    const picture = await engine.ask("read", { file }).catch((error: Error) => {
      throw new Error(`“${name}” ${error.message}.`);
    });
    const explanation = await engine.ask("explain", { tensor: picture.tensor, classIndex: TOP_CLASS });
    if (!isLatest()) return;
    current = { picture, name };
    drawPicture(pictureCanvas, picture.bitmap, picture.region, model.preprocessing.fill);
    const found = candidates(explanation.logits, model);
    showClasses(classes, found, explainClass);
    markSample(name);
    show(explanation, found);
  });
}

function explainClass(classIndex: number): void {
  void latestOnly(async (isLatest) => {
    if (!current) return;
    const explanation = await engine.ask("explain", { tensor: current.picture.tensor, classIndex });
    if (isLatest()) show(explanation, candidates(explanation.logits, model));
  });
}

function show(explanation: Explanation, found: Candidate[]): void {
  if (!current) return;
  const explained = found.find(({ index }) => index === explanation.explained);
  const name = explained?.name ?? "";
  drawHeatmap(heatmapCanvas, explanation, colormap(!model.relu));
  heatmapCanvas.setAttribute("aria-label", `Heatmap for ${name} on ${current.name}`);
  markExplained(classes, explanation.explained);
  status.textContent =
    `${name}, ${percent(explained?.probability ?? 0)}. ` +
    `Predicted and explained in ${explanation.milliseconds.toFixed(explanation.milliseconds < 10 ? 1 : 0)}\u00a0ms.`;
  note.hidden = explanation.heatmap.some((value) => value !== 0);
  note.textContent = `Nothing in this picture speaks for ${name}: its map is zero everywhere.`;
  stage.classList.add("filled");
  // for scripts beside the page, the tests among them: the numbers behind the picture
  document.dispatchEvent(
    new CustomEvent("explained", { detail: { name: current.name, tensor: current.picture.tensor, ...explanation } }),
  );
}

/** Runs a question with the page marked as busy, and shows its error, unless a later question overtook it. */
async function latestOnly(question: (isLatest: () => boolean) => Promise<void>): Promise<void> {
  const mine = (latest += 1);
  const isLatest = (): boolean => mine === latest;
  stage.setAttribute("aria-busy", "true");
  alert.hidden = true;
  try {
    await question(isLatest);
  } catch (error) {
    if (isLatest()) fail(error);
  } finally {
    if (isLatest()) stage.setAttribute("aria-busy", "false");
  }
}

function fail(error: unknown): void {
  alert.textContent = error instanceof Error ? error.message : String(error);
  alert.hidden = false;
}

opacity.addEventListener("input", () => {
  heatmapCanvas.style.opacity = String(opacity.valueAsNumber / 100);
  element("percentage", HTMLElement).textContent = `${opacity.value} %`;
});

start().catch((error: unknown) => {
  document.body.classList.replace("loading", "failed");
  fail(error);
});
