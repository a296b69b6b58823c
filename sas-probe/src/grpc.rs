//! The gRPC health service, `grpc.health.v1.Health/Check`: two messages of one field each, so that no code is generated
//! for them.

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sas_core::Io;

/// The most bytes of an answer that are read.
const MOST: usize = 4096;
/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;

/// Asks for `service`; empty: for the server as a whole.
pub(crate) async fn check(io: Box<dyn Io>, service: &str) -> Result<(), String> {
    let text = |error: hyper::Error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.map_err(text)?;
    let request = http::Request::post("http://localhost/grpc.health.v1.Health/Check")
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .header(http::header::USER_AGENT, "kube-probe/sas")
        .body(Full::new(message(service)))
        .map_err(|error| error.to_string())?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(text)?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("answered {}, not as gRPC", response.status().as_u16()));
        }
        let head = response.headers().clone();
        let body =
            Limited::new(response.into_body(), MOST).collect().await.map_err(|error| error.to_string())?;
        // An answer without a message has its status in the head.
        let trailers = body.trailers().cloned().unwrap_or(head);
        let status = trailers.get("grpc-status").and_then(|status| status.to_str().ok()).unwrap_or("none");
        if status != "0" {
            let said = trailers.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
            let remedy = if status == "12" { "; it has no health service" } else { "" };
            return Err(format!("status {status} {said}{remedy}"));
        }
        match serving(&body.to_bytes()) {
            Some(SERVING) => Ok(()),
            Some(2) => Err("it says NOT_SERVING".to_owned()),
            Some(other) => Err(format!("it says status {other}, not SERVING")),
            None => Err("its message is no HealthCheckResponse".to_owned()),
        }
    };
    tokio::select! {
        biased;
        answered = asking => answered,
        ended = connection => Err(ended.err().map_or("it ended the connection".to_owned(), text)),
    }
}

/// A `HealthCheckRequest` in gRPC's frame: a flag, a length of four bytes, and field 1, a string.
fn message(service: &str) -> Bytes {
    let mut field = BytesMut::new();
    if !service.is_empty() {
        field.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            field.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        field.put_u8(length as u8);
        field.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(5 + field.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(field.len()).unwrap_or(u32::MAX));
    framed.put_slice(&field);
    framed.freeze()
}

/// The status in a `HealthCheckResponse`: field 1, a varint; left out: 0, which is UNKNOWN.
fn serving(framed: &[u8]) -> Option<u64> {
    let (frame, message) = framed.split_at_checked(5)?;
    if frame[0] != 0 {
        return None; // Compressed, which nobody asked for.
    }
    let length = u32::from_be_bytes(frame[1..].try_into().ok()?);
    let mut message = message.get(..usize::try_from(length).ok()?)?;
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            1 => message = message.get(8..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for at in 0..10 {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << (7 * at);
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_read_whatever_else_is_in_it() {
        for (bytes, expected) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[0, 0, 0, 0, 6, 0x12, 2, b'h', b'i', 8, 1], Some(1)),
            (&[0, 0, 0, 0, 7, 0x1d, 1, 2, 3, 4, 8, 1], Some(1)),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[0, 0, 0, 0, 9, 8, 1], None),
            (&[0, 0, 0, 0, 2, 8, 0x80], None),
            (&[0, 0, 0], None),
        ] {
            assert_eq!(serving(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_request_names_its_service() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = message(&"x".repeat(200));
        assert_eq!((long.len(), &long[5..8]), (5 + 203, &[0x0a, 0xc8, 1][..]));
    }
}
