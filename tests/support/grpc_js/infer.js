// Calls a service of the echo network over the Open Inference Protocol, from the .proto alone; prints the results as JSON.
// Usage: node infer.js FOLDER PROTO ADDRESS IMAGES; FOLDER has the node_modules, IMAGES has the bytes of images of 28x28.

const fs = require('fs');
const path = require('path');
const [folder, proto, address, images] = process.argv.slice(2);
const load = (name) => require(path.join(folder, 'node_modules', '@grpc', name));
const grpc = load('grpc-js');
const {inference} = grpc.loadPackageDefinition(load('proto-loader').loadSync(proto, {keepCase: true, longs: Number, defaults: true}));
const client = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure());

const call = (method, request = {}) => new Promise((resolve) =>
  client[method](request, {deadline: Date.now() + 60000}, (error, answer) =>
    resolve(error ? {code: error.code, details: error.details} : answer)));

const pixels = fs.readFileSync(images);
const shape = [pixels.length / 784, 28, 28, 1];
const request = {model_name: 'digits', id: 'an id', inputs: [{name: 'images', datatype: 'UINT8', shape}]};
const raw = {...request, raw_input_contents: [pixels]};
const typed = {...request, inputs: [{...request.inputs[0], contents: {uint_contents: [...pixels]}}]};
const classes = {name: 'probabilities', parameters: {classification: {int64_param: 1}}};

async function main() {
  const answer = await call('ModelInfer', raw);
  const scores = answer.raw_output_contents[1];
  const typedAnswer = await call('ModelInfer', {...typed, outputs: [{name: 'label'}, {name: 'verdict'}, classes]});
  const [labels, verdicts, classified] = typedAnswer.outputs.map((output) => output.contents);
  console.log(JSON.stringify({
    live: await call('ServerLive'),
    ready: [await call('ServerReady'), await call('ModelReady', {name: 'digits', version: '1'})],
    metadata: await call('ModelMetadata', {name: 'digits'}),
    id: answer.id,
    names: answer.outputs.map((output) => output.name),
    scores: [...new Float32Array(scores.buffer.slice(scores.byteOffset, scores.byteOffset + scores.length))],
    typed: [typedAnswer.raw_output_contents.length, labels.int64_contents, verdicts.bytes_contents.map(String)],
    classes: classified.bytes_contents.map(String),
    error: await call('ModelInfer', {...raw, model_name: 'mnist'}),
  }));
  client.close();
}

main();
