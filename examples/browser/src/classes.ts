// The predicted classes as bars. They are radio buttons, so the arrow keys walk through them.

import { type Candidate, percent } from "./prediction.ts";

export function showClasses(list: HTMLElement, found: Candidate[], choose: (index: number) => void): void {
  list.replaceChildren(...found.map((candidate) => bar(candidate, choose)));
}

export function markExplained(list: HTMLElement, index: number): void {
  for (const radio of list.querySelectorAll("input")) radio.checked = radio.value === String(index);
}

function bar({ index, name, probability }: Candidate, choose: (index: number) => void): HTMLElement {
  const radio = document.createElement("input");
  Object.assign(radio, { type: "radio", name: "class", value: String(index), className: "visually-hidden" });
  radio.addEventListener("change", () => choose(index));
  const label = document.createElement("label");
  label.className = "bar";
  label.title = name; // a long one is cut off
  label.style.setProperty("--share", String(probability));
  label.append(radio, text("name", name), text("track", ""), text("value", percent(probability)));
  return label;
}

function text(className: string, content: string): HTMLElement {
  const span = document.createElement("span");
  span.className = className;
  span.textContent = content;
  return span;
}
