import { defineConfig, type Plugin } from "vite";

// The built page forbids itself, by its own header, to talk to anybody but where it came from.
const POLICY = [
  "default-src 'self'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "img-src 'self' data:",
  "style-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
].join("; ");

const ownOriginOnly: Plugin = {
  name: "own-origin-only",
  apply: "build", // the development server needs scripts of its own
  transformIndexHtml: () => [
    { tag: "meta", attrs: { "http-equiv": "Content-Security-Policy", content: POLICY }, injectTo: "head-prepend" },
  ],
};

export default defineConfig({
  base: "./", // the built page works in any folder of any server
  appType: "mpa", // a file that is missing is missing, and not the page again
  plugins: [ownOriginOnly],
  worker: { format: "es" },
  // the runtime finds its WebAssembly beside itself, which bundling for development would undo
  optimizeDeps: { exclude: ["onnxruntime-web"] },
});
