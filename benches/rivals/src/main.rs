//! `hob-bench-rivals zeromq` or `hob-bench-rivals s3 FOLDER`: a native server for `hob-bench`. Prints where it listens, and ends when its
//! standard input does.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, bail};
use hob_bench_work::censor::Classifier;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use zeromq::{Endpoint, RepSocket, Socket as _, SocketRecv as _, SocketSend as _, ZmqMessage};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match (args.next().as_deref(), args.next()) {
        (Some("zeromq"), None) => runtime.block_on(serve_zeromq()).map(|never| match never {}),
        (Some("s3"), Some(folder)) => runtime.block_on(serve_s3(&folder)).map(|never| match never {}),
        _ => bail!("expected 'zeromq', or 's3' and a folder"),
    }
}

/// Says where it listens; the process ends when its standard input does.
fn ready(addr: SocketAddr) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{addr}")?;
    std::thread::spawn(|| {
        // Whether it ended well or not, nobody is there any more.
        let _ended = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    Ok(())
}

/// The classifier of scenario `serving`, one batch in each request.
async fn serve_zeromq() -> anyhow::Result<Infallible> {
    let classifier = Classifier::load();
    let mut socket = RepSocket::new();
    let Endpoint::Tcp(_, port) = socket.bind("tcp://127.0.0.1:0").await? else { bail!("it listens at no port") };
    ready(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    loop {
        let request = socket.recv().await?;
        let batch = request.get(0).context("a message without a frame")?;
        socket.send(ZmqMessage::from(classifier.censor(batch))).await?;
    }
}

/// The files of a folder as objects: each folder in it is a bucket. Nobody signs anything.
async fn serve_s3(folder: &str) -> anyhow::Result<Infallible> {
    let files = s3s_fs::FileSystem::new(folder).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let service = s3s::service::S3ServiceBuilder::new(files).build();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    ready(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
        tokio::spawn(async move {
            // A connection that breaks is the client's affair.
            let _ended = connection.await;
        });
    }
}
