//! As much of the WebSocket protocol (RFC 6455) as a proxy needs to cut a connection between two frames.

/// Follows one direction of a connection and knows where frames end. Pure; copies nothing.
///
/// ```
/// use sas_router::WebSocketFrames;
/// let mut frames = WebSocketFrames::default();
/// // A text frame of two bytes, and the first byte of the next frame.
/// assert_eq!(frames.follow(&[0x81, 2, b'h', b'i', 0x81]), Some(4));
/// assert!(!frames.between());
/// ```
#[derive(Clone, Debug, Default)]
pub struct WebSocketFrames {
    /// Bytes of a frame's head so far: two, up to eight of length, up to four of mask.
    head: [u8; 14],
    have: usize,
    /// Bytes of the payload that are still to come.
    left: u64,
    closed: bool,
}

/// The opcode of a Close frame.
const CLOSE: u8 = 0x8;

impl WebSocketFrames {
    /// Follows `bytes`; how many of them belong to whole frames, if one ended among them.
    pub fn follow(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        let mut end = None;
        while at < bytes.len() {
            if self.left > 0 {
                let step = self.left.min((bytes.len() - at) as u64);
                self.left -= step;
                at += step as usize;
            } else {
                self.head[self.have] = bytes[at];
                self.have += 1;
                at += 1;
                let Some(length) = self.length() else { continue };
                self.left = length;
            }
            if self.left == 0 {
                self.closed |= self.head[0] & 0x0f == CLOSE;
                self.have = 0;
                end = Some(at);
            }
        }
        end
    }

    /// Whether the bytes so far end with a frame.
    pub fn between(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// Whether a Close frame has gone by: nothing may follow it.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// The payload's length, once the head is whole.
    fn length(&self) -> Option<u64> {
        if self.have < 2 {
            return None;
        }
        let mask = if self.head[1] & 0x80 != 0 { 4 } else { 0 };
        let (extended, short) = match self.head[1] & 0x7f {
            126 => (2, None),
            127 => (8, None),
            short => (0, Some(u64::from(short))),
        };
        if self.have < 2 + extended + mask {
            return None;
        }
        let bytes = &self.head[2..2 + extended];
        Some(short.unwrap_or_else(|| bytes.iter().fold(0, |length, byte| length << 8 | u64::from(*byte))))
    }
}

/// A Close frame of a server: 1001, going away.
pub(crate) const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, payload: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x80 | opcode];
        match payload {
            0..=125 => frame.push(mask | payload as u8),
            126..=65_535 => {
                frame.push(mask | 126);
                frame.extend_from_slice(&(payload as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend_from_slice(&(payload as u64).to_be_bytes());
            }
        }
        if masked {
            frame.extend_from_slice(&[1, 2, 3, 4]);
        }
        frame.resize(frame.len() + payload, 0x88);
        frame
    }

    proptest! {
        #[test]
        fn frames_are_found_however_the_bytes_are_cut(
            frames in prop::collection::vec(
                (0_u8..8, prop_oneof![0_usize..130, 65_530_usize..65_540], any::<bool>()), 0..6,
            ),
            cut in 1_usize..5_000,
        ) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for (opcode, payload, masked) in frames {
                bytes.extend(frame(opcode, payload, masked));
                ends.push(bytes.len());
            }
            let mut follower = WebSocketFrames::default();
            let mut seen = 0;
            for piece in bytes.chunks(cut) {
                let end = follower.follow(piece);
                let last = ends.iter().rev().find(|end| **end <= seen + piece.len()).copied().unwrap();
                prop_assert_eq!(end.map(|end| seen + end), (last > seen).then_some(last));
                seen += piece.len();
                prop_assert_eq!(follower.between(), ends.contains(&seen));
            }
            prop_assert!(!follower.closed());
        }
    }

    #[test]
    fn a_close_frame_is_seen() {
        let mut follower = WebSocketFrames::default();
        assert_eq!(follower.follow(&GOING_AWAY), Some(4));
        assert!(follower.closed());
    }
}
