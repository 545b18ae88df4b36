// SPDX-License-Identifier: Apache-2.0
//
// serve.js http|rr|shared ADDR PORT ROOT: serves files. With rr a master
// process accepts and hands each connection to a worker; with shared two
// workers accept from one listener.
'use strict';
const cluster = require('cluster');
const fs = require('fs');
const http = require('http');
const path = require('path');

const [how, addr, port, root] = process.argv.slice(2);

function serve() {
  const server = http.createServer((req, res) => {
    const name = path.join(root, path.basename(req.url));
    fs.stat(name, (err, st) => {
      res.writeHead(err ? 404 : 200, { 'Content-Length': err ? 0 : st.size });
      if (err) res.end(); else fs.createReadStream(name).pipe(res);
    });
  });
  server.listen(Number(port), addr);
  return server;
}

function end(code) { process.exit(code); }

if (how === 'http') {
  const server = serve();
  process.on('SIGTERM', () => { server.close(() => end(0)); server.closeAllConnections(); });
} else if (cluster.isPrimary) {
  cluster.schedulingPolicy = how === 'rr' ? cluster.SCHED_RR : cluster.SCHED_NONE;
  cluster.fork();
  cluster.fork();
  let ending = false;
  process.on('SIGTERM', () => {
    ending = true;
    for (const w of Object.values(cluster.workers)) w.process.kill('SIGTERM');
  });
  cluster.on('exit', (w, code, signal) => {
    if (!ending) { console.error(`worker ended: ${code} ${signal}`); end(1); }
    if (Object.keys(cluster.workers).length === 0) end(code || (signal ? 1 : 0));
  });
} else {
  const server = serve();
  process.on('SIGTERM', () => { server.closeAllConnections(); end(0); });
}
