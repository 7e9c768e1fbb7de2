// Classifies PNG files with @grpc/grpc-js, from digits.proto alone.
//
//   npm ci
//   node classify.mjs --address 127.0.0.1:50051 ../three.png

import {readFileSync} from 'node:fs';
import {fileURLToPath} from 'node:url';
import {parseArgs} from 'node:util';
import grpc from '@grpc/grpc-js';
import {loadSync} from '@grpc/proto-loader';
import {PNG} from 'pngjs';

const {values: {address}, positionals: files} = parseArgs({
  options: {address: {type: 'string', default: '127.0.0.1:50051'}}, allowPositionals: true,
});

// digits.proto imports google/rpc/status.proto; this folder has a copy.
const folder = (path) => fileURLToPath(new URL(path, import.meta.url));
const definition = loadSync('digitserve/v1/digits.proto', {
  includeDirs: [folder('../../proto'), folder('.')], enums: String, defaults: true,
});
const {DigitService} = grpc.loadPackageDefinition(definition).digitserve.v1;

// grpc-js retries calls itself, so the replacement of a worker is transparent to callers.
const serviceConfig = {
  methodConfig: [{
    name: [{service: 'digitserve.v1.DigitService', method: 'Classify'}],
    retryPolicy: {
      maxAttempts: 4, initialBackoff: '0.01s', maxBackoff: '1s', backoffMultiplier: 4,
      retryableStatusCodes: ['UNAVAILABLE', 'CANCELLED'],
    },
  }],
};
// With TLS: grpc.credentials.createSsl(readFileSync('ca.pem')).
const client = new DigitService(address, grpc.credentials.createInsecure(), {
  'grpc.service_config': JSON.stringify(serviceConfig),
  // Detect connections that the network has lost.
  'grpc.keepalive_time_ms': 10_000, 'grpc.keepalive_timeout_ms': 3_000,
});

function classify(file) {
  const {data, width, height} = PNG.sync.read(readFileSync(file)); // always RGBA
  const request = {pixels: data, width, height, pixelFormat: 'PIXEL_FORMAT_RGBA8', topK: 3};
  return new Promise((resolve, reject) =>
    client.classify(request, {deadline: Date.now() + 5_000}, (error, answer) =>
      error ? reject(error) : resolve(answer.predictions[0])));
}

try {
  for (const file of files) {
    const {label, confidence, verdict, top} = await classify(file);
    const others = top.slice(1).map((score) => `${score.label} ${score.confidence.toFixed(3)}`).join(', ');
    console.log(`${file}: ${label || '-'} ${confidence.toFixed(3)} ${verdict} (then ${others || 'none'})`);
  }
} catch (error) {
  // A full queue is RESOURCE_EXHAUSTED with the time after which a retry should succeed.
  const [wait] = error.metadata?.get('grpc-retry-pushback-ms') ?? [];
  const text = error.details ? `${grpc.status[error.code]}: ${error.details}` : error.message;
  console.error(`classify.mjs: ${text}${wait ? `; retry in ${wait} ms` : ''}`);
  process.exitCode = 1;
} finally {
  client.close();
}
