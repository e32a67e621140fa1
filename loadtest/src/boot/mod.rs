//! How soon an edge serves after its start with many names.
//!
//! Each round starts the edge's process anew on the same files and asks for the first name from the first moment on; the
//! CPU time is that of the whole process until it says that it is ready. With several programs the rounds are interleaved,
//! so that on a shared machine their ratio holds.

mod material;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use portico_cert_store::DomainName;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server_cpu::{cpu_time, resident_bytes};

const NAMES_MAX: usize = 2_000_000;
const ROUNDS_MAX: usize = 20;
/// From the start to ready.
const PATIENCE: Duration = Duration::from_secs(300);
/// Names asked for once it is ready.
const SAMPLE: usize = 200;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BootArgs {
    /// The edge's binary; several are measured in turn. By default `portico-edge` beside this one.
    #[arg(long = "program")]
    programs: Vec<PathBuf>,
    #[arg(long, default_value_t = 100_000)]
    names: usize,
    #[arg(long, default_value_t = 1)]
    per_certificate: usize,
    /// From PEM files instead of last-good files.
    #[arg(long)]
    standalone: bool,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// One start.
struct Start {
    cpu: Duration,
    first_handshake: Duration,
    ready: Duration,
    resident_mib: u64,
    peak_mib: u64,
}

pub(crate) fn run(args: &BootArgs) -> Result<()> {
    if args.names == 0 || args.names > NAMES_MAX || !(1..=100).contains(&args.per_certificate) {
        bail!("between 1 and {NAMES_MAX} names, 1 to 100 on a certificate");
    }
    if args.rounds == 0 || args.rounds > ROUNDS_MAX {
        bail!("--rounds {}: between 1 and {ROUNDS_MAX}", args.rounds);
    }
    let beside = std::env::current_exe()?.with_file_name("portico-edge");
    let programs = if args.programs.is_empty() { vec![beside] } else { args.programs.clone() };
    let folder = tempfile::tempdir()?;
    eprintln!("making the files of {} names, {} on a certificate ...", args.names, args.per_certificate);
    let names = material::make(folder.path(), args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!(
        "| program | round | CPU s | first handshake s | ready s | RSS MiB | peak MiB | sampled names right |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for round in 1..=args.rounds {
        for program in &programs {
            let edge = Process::start(program, folder.path(), args.standalone)?;
            let (start, right) = runtime.block_on(edge.watch(&names))?;
            println!(
                "| {} | {round} | {:.2} | {:.2} | {:.2} | {} | {} | {right} of {} |",
                program.display(),
                start.cpu.as_secs_f64(),
                start.first_handshake.as_secs_f64(),
                start.ready.as_secs_f64(),
                start.resident_mib,
                start.peak_mib,
                SAMPLE.min(names.len())
            );
        }
    }
    Ok(())
}

/// An edge under way; killed when dropped.
struct Process {
    child: Child,
    started: Instant,
    address: SocketAddr,
    metrics: SocketAddr,
}

impl Process {
    fn start(program: &Path, folder: &Path, standalone: bool) -> Result<Self> {
        let (address, metrics) = (portico_ports::reserve(), portico_ports::reserve());
        let source = if standalone {
            format!(
                "[certificates]\nfolder = {:?}\n[[route]]\nhost = \"*\"\nstatic_body = \"x\"\n",
                folder.join("certificates")
            )
        } else {
            // Nobody is there: it serves what it has.
            "[control]\naddress = \"127.0.0.1:1\"\n".to_owned()
        };
        let text = format!(
            "state = {:?}\nmetrics = \"{metrics}\"\naccess_log = \"off\"\n[[listen]]\naddress = \"{address}\"\nkind = \"https\"\n{source}",
            folder.join("state")
        );
        let file = folder.join("edge.toml");
        std::fs::write(&file, text)?;
        let mut command = Command::new(program);
        let log = std::fs::File::create(folder.join("edge.log"))?;
        command.arg("--config").arg(&file).stdout(Stdio::null()).stderr(log);
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        Ok(Self { child, started, address, metrics })
    }

    async fn watch(mut self, names: &[DomainName]) -> Result<(Start, usize)> {
        let config = client_config()?;
        let first = async {
            while let Err(error) = shake_hands(self.address, &names[0], &config).await {
                // Refused or reset while it starts; everything else is not a matter of time.
                if error.kind() == std::io::ErrorKind::InvalidData {
                    return Err(error);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(self.started.elapsed())
        };
        let pid = self.child.id();
        let ready = async {
            while !is_ready(self.metrics).await {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            (self.started.elapsed(), cpu_time(pid))
        };
        let both = async { tokio::join!(first, ready) };
        let (first_handshake, (ready, cpu)) = tokio::time::timeout(PATIENCE, both)
            .await
            .with_context(|| format!("not ready within {PATIENCE:?}; ended: {:?}", self.child.try_wait()))?;
        let mut right = 0;
        for at in 0..SAMPLE.min(names.len()) {
            let name = &names[at.wrapping_mul(7_919) % names.len()];
            right += usize::from(shake_hands(self.address, name, &config).await.is_ok());
        }
        let start = Start {
            cpu: cpu?,
            first_handshake: first_handshake.context("the first handshake")?,
            ready,
            resident_mib: resident_bytes(pid)? >> 20,
            peak_mib: peak_bytes(pid)? >> 20,
        };
        Ok((start, right))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _waited = self.child.wait();
    }
}

fn peak_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).context("no figure in VmHWM")?.parse::<u64>()? * 1024)
}

async fn is_ready(metrics: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(metrics).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        std::io::Result::Ok(text.starts_with("HTTP/1.1 200"))
    };
    ask.await.unwrap_or(false)
}

async fn shake_hands(
    address: SocketAddr,
    name: &DomainName,
    config: &Arc<ClientConfig>,
) -> std::io::Result<()> {
    let stream = TcpStream::connect(address).await?;
    tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name.to_server_name(), stream).await?;
    Ok(())
}

fn client_config() -> Result<Arc<ClientConfig>> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NameAndKey(Arc::new(aws_lc_rs::default_provider()))))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The certificate has to hold the name and its key has to sign. Its own signature is not looked at: the files are made
/// by putting names into one signed leaf.
#[derive(Debug)]
struct NameAndKey(Arc<CryptoProvider>);

impl ServerCertVerifier for NameAndKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_name(&parsed, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
