//! An HTTP/1.1 question, of which only the status is read: a client that keeps nothing.

use sas_core::Io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// `HTTP/1.1 200`
const STATUS_LINE: usize = 12;

/// `GET path`; 200 to 399 is success.
pub(crate) async fn get(mut io: Box<dyn Io>, path: &str, headers: &[(String, String)]) -> Result<(), String> {
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    let mut hosted = false;
    for (name, value) in headers {
        hosted |= name.eq_ignore_ascii_case("host");
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !hosted {
        request.push_str("Host: localhost\r\n");
    }
    request.push_str("User-Agent: kube-probe/sas\r\nAccept: */*\r\nConnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut head = [0u8; STATUS_LINE];
    io.read_exact(&mut head).await.map_err(|error| format!("it ended the connection: {error}"))?;
    let status = std::str::from_utf8(&head)
        .ok()
        .filter(|head| head.starts_with("HTTP/1."))
        .and_then(|head| head.get(9..12)?.parse::<u16>().ok());
    match status {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("answered {status}")),
        None => Err("what answers there speaks no HTTP/1.1".to_owned()),
    }
}
