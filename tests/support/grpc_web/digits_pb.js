// Exports what protoc-gen-es generates from digits.proto, from the messages in a file.
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";

const files = fromBinary(FileDescriptorSetSchema, readFileSync(process.env.SCHEMA));
export const DigitService = createFileRegistry(files).getService("digitserve.v1.DigitService");
