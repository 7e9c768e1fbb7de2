// Calls an echo server with @grpc/grpc-js, and prints the results as JSON.
// Usage: node client.js FOLDER ADDRESS [CERTIFICATE]; FOLDER has the node_modules with @grpc/grpc-js. With the file of a
// certificate it uses TLS.

const fs = require('fs');
const path = require('path');
const [folder, address, certificate] = process.argv.slice(2);
const grpc = require(path.join(folder, 'node_modules', '@grpc', 'grpc-js'));

const bytes = (value) => value;
const method = (name, streaming) => ({
  path: `/test.Echo/${name}`, requestStream: streaming, responseStream: streaming,
  requestSerialize: bytes, requestDeserialize: bytes, responseSerialize: bytes, responseDeserialize: bytes,
});
const Client = grpc.makeGenericClientConstructor(
  {echo: method('Echo', false), echoStream: method('EchoStream', true), none: method('None', false)}, 'Echo');
const limits = {'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1};
const credentials = certificate
  ? grpc.credentials.createSsl(fs.readFileSync(certificate)) : grpc.credentials.createInsecure();
const client = new Client(address, credentials, limits);
const deadline = () => Date.now() + 60000;

const call = (body, options = {}, metadata = new grpc.Metadata(), name = 'echo') => new Promise((resolve) =>
  client[name](Buffer.from(body), metadata, {deadline: deadline(), ...options}, (error, answer) =>
    resolve(error ? {code: error.code, details: error.details} : answer)));

const stream = (bodies) => new Promise((resolve) => {
  const answers = [];
  const duplex = client.echoStream(new grpc.Metadata(), {deadline: deadline()});
  duplex.on('data', (answer) => answers.push(answer.toString()));
  duplex.on('error', () => {});
  duplex.on('status', (status) => resolve({code: status.code, answers}));
  bodies.forEach((body) => duplex.write(Buffer.from(body)));
  duplex.end();
});

const cancelled = () => new Promise((resolve) => {
  const waiting = client.echo(Buffer.from('wait'), new grpc.Metadata(), {}, (error) => resolve(error.code));
  setTimeout(() => waiting.cancel(), 100);
});

async function main() {
  const numbers = [...Array(1000).keys()].map(String);
  const metadata = new grpc.Metadata();
  metadata.set('trace-bin', Buffer.from([...Array(256).keys()]));
  metadata.set('token', 'x'.repeat(2000));
  const big = Buffer.alloc(16 << 20, 7);
  const results = {
    parallel: (await Promise.all(numbers.map((body) => call(body)))).map(String).join() === numbers.join(),
    metadata: String(await call('hello', {}, metadata)),
    empty: (await call('')).length,
    big: Buffer.compare(await call(big), big),
    fail: await call('fail'),
    unknown: (await call('x', {}, metadata, 'none')).code,
    expired: (await call('wait', {deadline: Date.now() + 200})).code,
    cancelled: await cancelled(),
    stream: (({code, answers}) => [code, answers.join() === numbers.join()])(await stream(numbers)),
    last: String(await call('last')),
  };
  console.log(JSON.stringify(results));
  client.close();
}

main();
