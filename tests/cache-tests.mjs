// The public tests of HTTP caches (https://cache-tests.fyi), against Portico and whatever else is named:
//
//   node tests/cache-tests.mjs SUITE [TITLE=http://ADDRESS:PORT | TITLE=RESULTS.json]...
//
// SUITE is a checkout of http-tests/cache-tests in which `npm install --omit=dev` has run. Portico is the release build of this
// checkout, with `cache = {}` on a route to the suite's own server, which also is the origin of every server named by address.
// RESULTS.json is what another run has written (the suite's folder `results` has some). Prints a row for each, and of Portico
// what it fails. By hand: the suite is in no package registry, so that tests/run cannot bring it.
import { execFile, spawn } from 'node:child_process'
import { mkdtempSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { promisify } from 'node:util'

const DEADLINE_MS = 15 * 60 * 1000
const ORIGIN_PORT = 8000 // the suite's own, which its settings for other servers lead to
const NAME = 'cache.test' // Portico serves no site by its address
const LOOKUP = `import dns from 'node:dns'
const lookup = dns.lookup
dns.lookup = (name, ...rest) => lookup(name === '${NAME}' ? '127.0.0.1' : name, ...rest)`
const execute = promisify(execFile)
const NODE_ARGS = ['--no-warnings', '--import', `data:text/javascript,${encodeURIComponent(LOOKUP)}`]

const [suite, ...others] = process.argv.slice(2)
if (suite === undefined || others.some(other => !/^[^=]+=.+$/.test(other))) {
  console.error('usage: node tests/cache-tests.mjs SUITE [TITLE=http://ADDRESS:PORT | TITLE=RESULTS.json]...')
  process.exit(2)
}
const load = path => import(pathToFileURL(resolve(suite, path)))
const { default: suites } = await load('tests/index.mjs')
const { determineTestResult, resultTypes } = await load('test-engine/lib/results.mjs')

const folder = mkdtempSync(join(tmpdir(), 'cache-tests-'))
const children = []
let died // what rejects when a child has ended that should run on
const death = new Promise((resolve, reject) => { died = reject })
try {
  await Promise.race([death, measure()])
} finally {
  children.forEach(child => child.removeAllListeners('exit').kill())
  rmSync(folder, { recursive: true })
}

async function measure () {
  start('the suite\'s server', process.execPath, ['test-engine/server/server.mjs'], {
    cwd: suite,
    env: { ...process.env, npm_config_protocol: 'http', npm_config_port: `${ORIGIN_PORT}`, npm_config_pidfile: join(folder, 'pid') }
  })
  const measured = [['Portico', await run(await startPortico())]]
  for (const other of others) {
    const [title, source] = [other.slice(0, other.indexOf('=')), other.slice(other.indexOf('=') + 1)]
    measured.push([title, source.startsWith('http') ? await run(source) : JSON.parse(readFileSync(source, 'utf8'))])
  }
  print(measured)
}

function start (what, program, args, options) {
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'], ...options })
  let said = ''
  child.stderr.on('data', text => { said += text })
  child.on('error', died)
  child.on('exit', code => died(new Error(`${what} has ended with status ${code}: ${said}`)))
  children.push(child)
}

async function freePort () {
  const server = createServer()
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address()
  await new Promise(resolve => server.close(resolve))
  return port
}

async function startPortico () {
  const port = await freePort()
  const base = `http://${NAME}:${port}`
  const pem = join(folder, 'certificates', 'cache.pem')
  mkdirSync(join(folder, 'certificates'))
  await execute('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2',
    '-subj', '/', '-addext', `subjectAltName=critical,DNS:${NAME}`, '-keyout', `${folder}/key.pem`, '-out', `${folder}/chain.pem`])
  writeFileSync(pem, readFileSync(join(folder, 'chain.pem'), 'utf8') + readFileSync(join(folder, 'key.pem'), 'utf8'), { mode: 0o600 })
  writeFileSync(join(folder, 'edge.toml'), `
state = "state"
admin_socket = "admin.sock"
[[listen]]
address = "127.0.0.1:${port}"
kind = "http"
[certificates]
folder = "certificates"
[client_limits]
exempt = ["127.0.0.0/8"]
[egress]
allow = [{ cidr = "127.0.0.0/8", ports = [${ORIGIN_PORT}] }]
[[route]]
host = "*"
plain_http = true
proxy = "http://127.0.0.1:${ORIGIN_PORT}"
cache = {}
`)
  start('portico-edge', 'target/release/portico-edge', ['--config', join(folder, 'edge.toml')], {})
  for (let tries = 0; tries < 100; tries++) {
    const asked = execute('curl', ['-sf', '--resolve', `${NAME}:${port}:127.0.0.1`, '-o', '/dev/null', base])
    if (await asked.then(() => true, () => false)) return base
    await new Promise(resolve => setTimeout(resolve, 100))
  }
  throw new Error(`neither portico-edge nor the suite's server behind it answers at ${base} within 10 s`)
}

/** What each test of the suite says of the server at `base`. */
async function run (base) {
  console.error(`${base} ...`)
  const { stdout } = await execute(process.execPath, [...NODE_ARGS, 'test-engine/cli.mjs'], {
    cwd: suite,
    env: { ...process.env, npm_config_base: base, npm_package_config_id: '' },
    maxBuffer: 64 << 20,
    timeout: DEADLINE_MS
  })
  return JSON.parse(stdout.slice(stdout.indexOf('{')))
}

function print (measured) {
  const tests = suites.flatMap(({ tests }) => tests).filter(test => !test.browser_only)
  const [required, optimal] = ['required', 'optimal'].map(kind => tests.filter(test => (test.kind ?? 'required') === kind))
  const count = (tests, results, type) => tests.filter(({ id }) => determineTestResult(suites, id, results) === type).length
  console.log(`| | required, of ${required.length}: passed | failed | not reached | optimal, of ${optimal.length}: passed |`)
  console.log('|---|---|---|---|---|')
  for (const [title, results] of measured) {
    const [passed, failed] = [resultTypes.pass, resultTypes.fail].map(type => count(required, results, type))
    const rest = required.length - passed - failed
    console.log(`| ${title} | ${passed} | ${failed} | ${rest} | ${count(optimal, results, resultTypes.pass)} |`)
  }
  const [, results] = measured[0]
  for (const { id, name } of required) {
    if (determineTestResult(suites, id, results) === resultTypes.fail) console.log(`failed: ${id}: ${name}: ${results[id][1]}`)
  }
}
