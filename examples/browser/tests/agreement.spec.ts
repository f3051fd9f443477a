// The browser against camkit's own session: the same input, and then the same file.

import { readFileSync } from "node:fs";

import { type Answer, expected, floats, largestDifference, model, pathOf, relativeError, samples } from "./expected.ts";
import { type Recorded, expect, test } from "./page.ts";

const SAME_INPUT = 1e-4; // relative, as in all of camkit

test("samples give the same input, prediction, map and heatmap as camkit", async ({ camkit, page }) => {
  const worst = { logits: 0, map: 0, heatmap: 0 };
  await camkit.explanation(() => page.goto("./"));
  for (const sample of samples) {
    const { tensor, answers } = expected.pictures[sample]!;
    for (const answer of answers) {
      const found = await camkit.explanation(async () =>
        answer.asked < 0
          ? page.getByTitle(sample).click()
          : camkit.page.locator(`input[value="${answer.asked}"]`).check({ force: true }),
      );
      expect(found.name).toBe(sample);
      expect(largestDifference(found.tensor, floats(tensor))).toBe(0);
      expect(found.explained).toBe(answer.explained);
      const errors = compare(found, answer);
      for (const kind of ["logits", "map", "heatmap"] as const) worst[kind] = Math.max(worst[kind], errors[kind]);
    }
  }
  report("largest relative errors on identical input", worst);
  expect(worst.logits).toBeLessThan(SAME_INPUT);
  expect(worst.map).toBeLessThan(SAME_INPUT);
  expect(worst.heatmap).toBeLessThan(1e-3);
});

// every browser decodes PNG alike, but no two decoders of JPEG need to round alike
for (const [photo, type, levels, error] of [
  ["photo.png", "image/png", 0, SAME_INPUT],
  ["photo.jpg", "image/jpeg", 2, 2e-2],
] as const) {
  test(`a dropped ${photo} is explained as by camkit`, async ({ camkit, page }) => {
    const { tensor, answers } = expected.pictures[photo]!;
    await camkit.explanation(() => page.goto("./"));
    const found = await camkit.explanation(() => camkit.drop(photo, type, readFileSync(pathOf(photo))));
    expect(found.name).toBe(photo);
    expect(found.explained).toBe(answers[0]!.explained);
    await expect(camkit.status).toContainText(model.class_names[found.explained]!);
    const difference = largestDifference(found.tensor, floats(tensor)) * Math.max(...model.preprocessing.std) * 255;
    const errors = compare(found, answers[0]!);
    report(photo, { levels: difference, ...errors });
    expect(Math.round(difference)).toBeLessThanOrEqual(levels);
    expect(errors.logits).toBeLessThan(error);
    expect(errors.map).toBeLessThan(error);
  });
}

function compare(found: Recorded, answer: Answer) {
  const [map, heatmap] = [floats(answer.map), floats(answer.heatmap)];
  // a constant is easily reached
  expect(Math.max(...map) - Math.min(...map)).toBeGreaterThan(0);
  expect(Math.max(...heatmap)).toBeGreaterThan(0);
  return {
    logits: relativeError(found.logits, floats(answer.logits)),
    map: relativeError(found.map, map),
    heatmap: largestDifference(found.heatmap, heatmap),
  };
}

function report(title: string, figures: Record<string, number>): void {
  const text = Object.entries(figures).map(([name, value]) => `${name} ${value.toExponential(1)}`);
  console.log(`  ${title}: ${text.join(", ")}`);
}
