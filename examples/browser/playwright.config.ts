import { defineConfig } from "@playwright/test";

import { installedBrowser } from "./tests/browser.ts";

const port = process.env.PORT ?? "4173";
const address = `http://localhost:${port}/`;

export default defineConfig({
  testDir: "tests",
  timeout: 120_000, // busy machines are slow, not wrong
  workers: 1, // a model in each of several pages would only measure how they wait for each other
  reporter: "list",
  use: { baseURL: address, launchOptions: { executablePath: installedBrowser() } },
  // what is tested is the page as it is published
  webServer: { command: `npm run build && npm run preview -- --strictPort --port ${port}`, url: address },
});
