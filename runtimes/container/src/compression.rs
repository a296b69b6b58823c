//! Layers are packed by gzip, by zstd or not at all; the bytes say how.

use std::io::{self, Cursor, Read};

use sas_core::{Error, ErrorKind, Result};

/// The unpacked bytes of a blob.
pub(crate) fn open<'a>(mut blob: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let mut magic = [0u8; 4];
    let mut have = 0;
    while have < magic.len() {
        match blob.read(&mut magic[have..]) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(Error::new(ErrorKind::Unavailable, "prepare", format!("read a layer: {error}")));
            }
        }
    }
    let whole = Cursor::new(magic[..have].to_vec()).chain(blob);
    Ok(match magic[..have] {
        [0x1f, 0x8b, ..] => {
            Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::with_capacity(64 * 1024, whole)))
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            Box::new(Frames { source: io::BufReader::with_capacity(64 * 1024, whole), frame: None })
        }
        _ => Box::new(whole),
    })
}

/// A stream of zstd frames, one after the other as parallel packers write them.
struct Frames<R: Read> {
    source: io::BufReader<R>,
    frame: Option<ruzstd::decoding::FrameDecoder>,
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::io::BufRead as _;
        loop {
            if let Some(frame) = &mut self.frame {
                while frame.can_collect() == 0 && !frame.is_finished() {
                    let strategy = ruzstd::decoding::BlockDecodingStrategy::UptoBytes(64 * 1024);
                    frame.decode_blocks(&mut self.source, strategy).map_err(broken)?;
                }
                let read = frame.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
                self.frame = None;
            }
            if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            let mut frame = ruzstd::decoding::FrameDecoder::new();
            match frame.init(&mut self.source) {
                Ok(()) => self.frame = Some(frame),
                Err(ruzstd::decoding::errors::FrameDecoderError::ReadFrameHeaderError(
                    ruzstd::decoding::errors::ReadFrameHeaderError::SkipFrame { length, .. },
                )) => {
                    io::copy(&mut (&mut self.source).take(u64::from(length)), &mut io::sink())?;
                }
                Err(error) => return Err(broken(error)),
            }
        }
    }
}

fn broken(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {error}"))
}
