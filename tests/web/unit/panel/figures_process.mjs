// Answers each JSON line {before, after, period_s} of standard input with the figures of the page's panel, as one JSON line.
import { createInterface } from "node:readline";

import { compare, isRestarted } from "../../../../service/digitserve/web/page/figures.js";
import { parse } from "../../../../service/digitserve/web/page/metrics_text.js";

for await (const line of createInterface({ input: process.stdin })) {
  const { before, after, period_s: periodS } = JSON.parse(line);
  const pages = [parse(before), parse(after)];
  const samples = Object.fromEntries(pages[1].samples);
  process.stdout.write(
    `${JSON.stringify({ figures: compare(...pages, periodS), restarted: isRestarted(...pages), samples })}\n`,
  );
}
