//! Which protocol a plain-text connection speaks: its first bytes say so.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// The connection preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    Http1,
    Http2,
}

/// A connection whose first bytes were looked at.
#[derive(Debug)]
pub(super) struct Replayed<S> {
    first: [u8; PREFACE.len()],
    from: u8,
    to: u8,
    stream: S,
}

/// Reads until the protocol is clear. `None`: the client left before it had said anything.
pub(super) async fn detect<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<Option<(Spoken, Replayed<S>)>> {
    let mut first = [0; PREFACE.len()];
    let mut read = 0;
    let spoken = loop {
        match stream.read(&mut first[read..]).await? {
            0 if read == 0 => return Ok(None),
            0 => break Spoken::Http1,
            some => read += some,
        }
        if first[..read] != PREFACE[..read] {
            break Spoken::Http1;
        }
        if read == PREFACE.len() {
            break Spoken::Http2;
        }
    };
    let to = u8::try_from(read).expect("at most the length of the preface");
    Ok(Some((spoken, Replayed { first, from: 0, to, stream })))
}

#[cfg(feature = "tls")]
impl<S> Replayed<S> {
    /// A connection of which nothing was read.
    pub(super) fn untouched(stream: S) -> Self {
        Self { first: [0; PREFACE.len()], from: 0, to: 0, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.from < this.to {
            let rest = &this.first[usize::from(this.from)..usize::from(this.to)];
            let count = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..count]);
            this.from += count as u8;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    async fn spoken(parts: &[&[u8]]) -> Option<(Spoken, Vec<u8>)> {
        let (mut client, server) = tokio::io::duplex(1024);
        let parts: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let writing = tokio::spawn(async move {
            for part in parts {
                client.write_all(&part).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let detected = detect(server).await.unwrap();
        writing.await.unwrap();
        let (spoken, mut stream) = detected?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        Some((spoken, all))
    }

    #[tokio::test]
    async fn the_first_bytes_tell_and_are_not_lost() {
        let get = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        assert_eq!(spoken(&[get]).await, Some((Spoken::Http1, get.to_vec())));
        assert_eq!(
            spoken(&[PREFACE, b"more"]).await,
            Some((Spoken::Http2, [PREFACE, &b"more"[..]].concat()))
        );
        assert_eq!(spoken(&[b"P", b"RI * HT", &PREFACE[8..]]).await, Some((Spoken::Http2, PREFACE.to_vec())));
        assert_eq!(spoken(&[b"PR", b"OPFIND / HTTP/1.1"]).await.unwrap().0, Spoken::Http1);
        assert_eq!(spoken(&[b"PRI * HTTP/2.0\r\n\r\nXX"]).await.unwrap().0, Spoken::Http1);
        assert_eq!(spoken(&[b"P"]).await, Some((Spoken::Http1, b"P".to_vec())));
        assert_eq!(spoken(&[]).await, None);
    }
}
