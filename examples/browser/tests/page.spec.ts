// What a person does with the page, and what it says when something is wrong.

import { readFileSync } from "node:fs";

import { expected, largestDifference, model, pathOf, samples } from "./expected.ts";
import { expect, test } from "./page.ts";

test("the first sample is explained without a click", async ({ camkit, page }) => {
  const found = await camkit.explanation(() => page.goto("./"));
  const top = expected.pictures[samples[0]!]!.answers[0]!.explained;
  expect(found.explained).toBe(top);
  const name = model.class_names[top]!;
  await expect(camkit.status).toHaveText(new RegExp(`^${name}, .*\\sms\\.$`));
  await expect(camkit.bar(name)).toBeChecked();
  await expect(page.getByRole("img", { name: `Heatmap for ${name} on ${samples[0]}` })).toBeVisible();
  await expect(page.getByTitle(samples[0]!)).toHaveAttribute("aria-pressed", "true");
});

test("another class gives another heatmap, by the arrow keys too", async ({ camkit, page }) => {
  const [top, second, third] = expected.pictures[samples[0]!]!.answers;
  const first = await camkit.explanation(() => page.goto("./"));
  const drawn = await page.screenshot({ clip: (await page.locator("#stage").boundingBox())! });
  const clicked = await camkit.explanation(() => page.getByText(model.class_names[second!.explained]!).click());
  expect([first.explained, clicked.explained]).toEqual([top!.explained, second!.explained]);
  expect(largestDifference(clicked.heatmap, first.heatmap)).toBeGreaterThan(0.1);
  expect(await page.screenshot({ clip: (await page.locator("#stage").boundingBox())! })).not.toEqual(drawn);
  await expect(camkit.status).toContainText(model.class_names[clicked.explained]!);
  const walked = await camkit.explanation(() => page.keyboard.press("ArrowDown"));
  expect(walked.explained).toBe(third!.explained);
  await expect(camkit.bar(model.class_names[walked.explained]!)).toBeFocused();
});

test("a file can be chosen", async ({ camkit, page }) => {
  await camkit.explanation(() => page.goto("./"));
  const found = await camkit.explanation(() => page.setInputFiles("#file", pathOf("photo.jpg")));
  expect(found.name).toBe("photo.jpg");
  for (const sample of samples) await expect(page.getByTitle(sample)).toHaveAttribute("aria-pressed", "false");
});

test("the slider fades the heatmap", async ({ camkit, page }) => {
  await camkit.explanation(() => page.goto("./"));
  await page.getByRole("slider").fill("25");
  await expect(page.locator("#heatmap")).toHaveCSS("opacity", "0.25");
  await expect(page.getByText("25 %", { exact: true })).toBeVisible();
});

test("a file that is no image is refused in one sentence, and the page goes on", async ({ camkit, page }) => {
  await camkit.explanation(() => page.goto("./"));
  await camkit.drop("notes.txt", "text/plain", Buffer.from("no picture"));
  await expect(camkit.alert).toHaveText("“notes.txt” is not an image that this browser can read.");
  await camkit.drop("broken.png", "image/png", readFileSync(pathOf("photo.png")).subarray(0, 200));
  await expect(camkit.alert).toContainText("“broken.png” is not an image");
  await camkit.explanation(() => page.getByTitle(samples[1]!).click());
  await expect(camkit.alert).toBeHidden();
});

test("a model that is missing or damaged is said so", async ({ camkit, page }) => {
  await page.route("**/model.json", (route) => route.fulfill({ status: 404 }));
  await page.goto("./");
  await expect(camkit.alert).toContainText("run prepare.py first");
  await expect(page.getByText("Choose a picture")).toBeHidden();
  await page.unroute("**/model.json");
  await page.route("**/model.onnx", (route) => route.fulfill({ body: "no graph" }));
  await page.goto("./");
  await expect(camkit.alert).toContainText("ONNX Runtime cannot load model.onnx");
});

for (const [device, viewport] of [
  ["phone", { width: 390, height: 844 }],
  ["laptop", { width: 1280, height: 800 }],
] as const) {
  test(`on a ${device} nothing is wider than the screen`, async ({ camkit, page }) => {
    await page.setViewportSize(viewport);
    await camkit.explanation(() => page.goto("./"));
    const width = await page.evaluate(() => document.documentElement.scrollWidth);
    expect(width).toBeLessThanOrEqual(viewport.width);
  });
}

test("the page forbids itself every other origin", async ({ camkit, page, requests }) => {
  await camkit.explanation(() => page.goto("./"));
  expect(requests.some((address) => address.endsWith(".wasm"))).toBe(true);
  // the policy's own word: an address that does not exist would fail without any policy
  const refused = await page.evaluate(() => {
    const violation = new Promise((resolve) =>
      document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective)),
    );
    fetch("http://camkit.invalid/").catch(() => undefined);
    return violation;
  });
  expect(refused).toBe("connect-src");
  // that request was the test's own, whether or not the browser reported it
  requests.splice(0, requests.length, ...requests.filter((address) => !address.includes("camkit.invalid")));
});
