import assert from "node:assert/strict";
import test from "node:test";

import { toQuery } from "../../../../service/digitserve/web/page/read_options.js";
import {
  announce, classOf, describeIgnored, describeLine, describeMark, isDoubtful, kindOf, scoresOf, summarise,
} from "../../../../service/digitserve/web/page/reading_text.js";

const top = [{ label: "7", class_index: 7, confidence: 0.8 }, { label: "1", class_index: 1, confidence: 0.15 }];
const digit = { text: "7", kind: "MARK_KIND_DIGIT", label: "7", confidence: 0.999, verdict: "VERDICT_ACCEPTED", top };
const unread = { ...digit, text: "?", kind: "MARK_KIND_UNREAD", verdict: "VERDICT_UNFAMILIAR" };
const slash = { text: "/", kind: "MARK_KIND_SEPARATOR", label: "", confidence: 0.97, verdict: "VERDICT_UNSPECIFIED", top: [] };
const cell = { ...slash, text: " ", kind: "MARK_KIND_EMPTY" };

const line = (marks, confidence, matches = true) => ({ text: marks.map(({ text }) => text).join(""), confidence, marks, matches });
const plain = (text) => text.replaceAll("\u00a0", " ");

test("a mark is sure, to check, or not read; separators and empty cells are neither", () => {
  const doubtful = { ...digit, confidence: 0.8 };
  assert.deepEqual([digit, doubtful, unread, slash, cell].map(classOf), ["sure", "check", "unread", "separator", "empty"]);
  assert.equal(classOf({ ...slash, confidence: 0.6 }), "check");
  assert.equal(plain(kindOf(doubtful)), "Digit, check it: 80.0 %");
});

test("all about a mark is in its name", () => {
  assert.equal(plain(describeMark(digit)), "7 Digit: 99.9 %. By the network: 7 80.0 %, 1 15.0 %");
  assert.equal(plain(describeMark(unread)), "? Not read: not similar to the training images. By the network: 7 80.0 %, 1 15.0 %");
  assert.equal(plain(describeMark(slash)), "/ Slash: 97.0 %");
  assert.equal(describeMark(cell), "Empty cell");
});

test("without alternatives a digit has its own label", () => {
  assert.deepEqual(scoresOf({ ...digit, top: [] }).map(({ label, confidence }) => [label, confidence]), [["7", 0.999]]);
  assert.deepEqual(scoresOf(slash), []);
});

test("the confidence of a line is in words", () => {
  for (const [confidence, words] of [[0.995, "Very sure: 99.5 %"], [0.9, "Sure: 90.0 %"], [0.7, "Probably right, check it: 70.0 %"],
    [0.1, "Not sure, check it: 10.0 %"], [0, "Not sure, check it: 0.0 %"]]) {
    assert.equal(plain(describeLine(line([digit], confidence))), words);
  }
  assert.equal(describeLine(line([digit, unread, unread], 0)), "2 marks not read");
  assert.match(describeLine(line([digit], 0.995, false)), /does not have the pattern/);
});

test("a line is doubtful if its confidence is low or it does not match", () => {
  assert.deepEqual([line([digit], 0.95), line([digit], 0.8), line([digit], 0.95, false)].map(isDoubtful), [false, true, true]);
});

test("the summary counts lines and digits", () => {
  const lines = [line([digit, slash, { ...digit, confidence: 0.5 }], 0.5), line([cell, unread], 0)];
  assert.equal(summarise({ lines }), "2 lines with 3 digits, 1 to check, 1 not read");
  assert.equal(summarise({ lines: [line([digit], 1)] }), "1 line with 1 digit");
  assert.equal(summarise({ lines: [] }), "No number found");
});

test("the announcement spells the first lines", () => {
  const seven = line([digit, digit], 0.999);
  assert.equal(plain(announce({ lines: [seven] })), "1 line with 2 digits. 7 7. Very sure: 99.9 %.");
  assert.equal(announce({ lines: Array(9).fill(seven) }).match(/7 7/g).length, 3);
});

test("what was ignored is counted by kind", () => {
  const kinds = ["SPECK", "RULING", "SPECK"].map((kind) => ({ kind: `IGNORED_KIND_${kind}` }));
  assert.equal(describeIgnored(kinds), "Ignored: 1 ruled line or box, 2 specks.");
  assert.equal(describeIgnored([]), "");
});

test("only options with a value are sent", () => {
  assert.equal(toQuery("page", "", " "), "layout=page&top_k=3");
  const query = new URLSearchParams(toQuery("cells", "5", String.raw`[0-3]\d/\d{2}+&`));
  assert.deepEqual(
    Object.fromEntries(query), { layout: "cells", top_k: "3", num_digits: "5", pattern: String.raw`[0-3]\d/\d{2}+&` },
  );
});
