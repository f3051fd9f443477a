// Where pictures come from: samples, the file dialogue, a drop anywhere on the page.

import { element } from "./elements.ts";

export type Open = (file: Blob, name: string) => void;

const SAMPLES = "samples/";

export function listenForFiles(open: Open): void {
  const chooser = element("file", HTMLInputElement);
  chooser.addEventListener("change", () => {
    openFirst(chooser.files, open);
    chooser.value = ""; // so that the same file can be chosen again
  });
  let depth = 0; // a drag enters and leaves every element that it crosses
  const drag = (change: number): void => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  window.addEventListener("dragenter", () => drag(1));
  window.addEventListener("dragleave", () => drag(-1));
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    drag(-depth);
    openFirst(event.dataTransfer?.files ?? null, open);
  });
}

/** Shows the samples as buttons and opens the first. */
export function showSamples(names: string[], open: Open): void {
  element("samples", HTMLElement).replaceChildren(...names.map((name) => sampleButton(name, open)));
  const [first] = names;
  if (first) void openSample(first, open);
}

/** Marks the sample that is shown, or none. */
export function markSample(shown: string): void {
  for (const button of element("samples", HTMLElement).querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.title === shown));
  }
}

function sampleButton(name: string, open: Open): HTMLElement {
  const button = document.createElement("button");
  const image = document.createElement("img");
  Object.assign(image, { src: SAMPLES + name, alt: name });
  Object.assign(button, { type: "button", title: name });
  button.append(image);
  button.addEventListener("click", () => void openSample(name, open));
  return button;
}

async function openSample(name: string, open: Open): Promise<void> {
  const answer = await fetch(SAMPLES + name);
  open(await answer.blob(), name);
}

function openFirst(files: FileList | null, open: Open): void {
  const file = files?.[0];
  if (file) open(file, file.name);
}
