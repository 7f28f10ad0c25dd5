//! A web server of the smallest kind: one request a connection.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What is sent.
pub struct Reply {
    head: String,
    /// Shorter than the head says: a connection that breaks.
    pub body: Vec<u8>,
    /// Wait before the connection is closed.
    pub silence: Duration,
}

impl Reply {
    fn new(head: String, body: &[u8]) -> Self {
        Self { head, body: body.to_vec(), silence: Duration::ZERO }
    }

    pub fn ok(body: &[u8]) -> Self {
        Self::new(format!("200 OK\r\nContent-Length: {}", body.len()), body)
    }

    pub fn status(status: &str) -> Self {
        Self::new(format!("{status}\r\nContent-Length: 0"), b"")
    }

    pub fn redirect(to: &str) -> Self {
        Self::status(&format!("302 Found\r\nLocation: {to}"))
    }

    pub fn chunked(body: &[u8]) -> Self {
        let mut bytes = Vec::new();
        for chunk in body.chunks(10_000) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        Self::new("200 OK\r\nTransfer-Encoding: chunked".into(), &bytes)
    }
}

/// The answer of a server that knows ranges; `tag` is its ETag.
pub fn sent(request: &Request, body: &[u8], tag: Option<&str>) -> Reply {
    let tag_line = tag.map_or(String::new(), |tag| format!("\r\nETag: {tag}"));
    let fresh = request.header("if-range").is_none_or(|asked| Some(asked) == tag);
    let from = request.header("range").filter(|_| fresh).map(|range| {
        let from = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        from.expect("a range").parse::<usize>().expect("a number")
    });
    let total = body.len();
    match from {
        None => Reply::new(format!("200 OK\r\nContent-Length: {total}{tag_line}"), body),
        Some(from) if from >= total => {
            Reply::status(&format!("416 Range Not Satisfiable\r\nContent-Range: bytes */{total}"))
        }
        Some(from) => {
            let (last, length) = (total - 1, total - from);
            let range = format!("Content-Range: bytes {from}-{last}/{total}");
            let head =
                format!("206 Partial Content\r\n{range}\r\nContent-Length: {length}{tag_line}");
            Reply::new(head, &body[from..])
        }
    }
}

/// A server that runs until the test ends.
pub struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `answer` is given each request and how many there were before.
    pub fn start(answer: impl Fn(&Request, usize) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("a connection");
                let Some(request) = read(&stream) else { continue };
                let turn = {
                    let mut seen = seen.lock().expect("unpoisoned");
                    seen.push(request.clone());
                    seen.len() - 1
                };
                let reply = answer(&request, turn);
                std::thread::spawn(move || send(stream, &reply));
            }
        });
        Self { url, requests }
    }

    /// What was asked for so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("unpoisoned").clone()
    }
}

/// An address at which nobody listens.
pub fn unused_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let pair = |line: String| {
        let (key, value) = line.split_once(':')?;
        Some((key.to_lowercase(), value.trim().to_owned()))
    };
    Some(Request { path, headers: lines.map_while(pair).collect() })
}

/// The client may have had enough before the end.
fn send(mut stream: TcpStream, reply: &Reply) {
    let head = format!("HTTP/1.1 {}\r\nConnection: close\r\n\r\n", reply.head);
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&reply.body));
    let _ = stream.flush();
    std::thread::sleep(reply.silence);
}
