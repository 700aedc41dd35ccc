//! The payload: which byte stands where in a direction of a connection. A
//! receiver compares all of them, so one that is lost, repeated, reordered or
//! reflected is noticed.

use std::io;

/// A prime: no message size that is measured is a multiple of it.
const PERIOD: usize = 4093;
/// Where replies begin: a request that comes back is no reply.
const REPLIES: u64 = 2039;

/// Pseudo-random bytes that repeat after [`PERIOD`].
#[derive(Debug)]
pub struct Pattern {
    table: Vec<u8>,
    longest: usize,
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The client.
    Request,
    /// The server.
    Reply,
}

impl Pattern {
    /// For pieces up to this length.
    pub fn new(longest: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let period: Vec<u8> = (0..PERIOD)
            .map(|_| {
                // xorshift64
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[4]
            })
            .collect();
        let table = period.into_iter().cycle().take(PERIOD + longest).collect();
        Self { table, longest }
    }

    /// The bytes that stand there.
    pub fn piece(&self, way: Way, offset: u64, len: usize) -> &[u8] {
        let phase = match way {
            Way::Request => 0,
            Way::Reply => REPLIES,
        };
        let start = usize::try_from((offset + phase) % PERIOD as u64).unwrap_or_default();
        &self.table[start..start + len.min(self.longest)]
    }

    /// Whether these are the ones.
    pub fn check(&self, way: Way, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.piece(way, offset, bytes.len()) == bytes {
            return Ok(());
        }
        let what = match way {
            Way::Request => "request",
            Way::Reply => "reply",
        };
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{what}: {} bytes at {offset} are not what was sent",
                bytes.len()
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{Pattern, Way};

    #[test]
    fn any_split_of_a_stream_is_the_same_stream() {
        let pattern = Pattern::new(10_000);
        let whole = pattern.piece(Way::Request, 0, 10_000).to_vec();
        for split in [1, 7, 4093, 9999] {
            pattern.check(Way::Request, 0, &whole[..split]).unwrap();
            pattern
                .check(Way::Request, split as u64, &whole[split..])
                .unwrap();
        }
    }

    #[test]
    fn what_is_lost_repeated_or_reflected_is_noticed() {
        let pattern = Pattern::new(1 << 20);
        for size in [8_u64, 64, 4096, 65_536, 1 << 20] {
            let len = usize::try_from(size).unwrap();
            let sent = pattern.piece(Way::Request, size, len).to_vec();
            pattern.check(Way::Request, size, &sent).unwrap();
            pattern.check(Way::Request, 0, &sent).unwrap_err();
            pattern.check(Way::Request, 2 * size, &sent).unwrap_err();
            pattern.check(Way::Reply, size, &sent).unwrap_err();
        }
    }

    #[test]
    fn one_wrong_byte_is_noticed() {
        let pattern = Pattern::new(64);
        let mut bytes = pattern.piece(Way::Reply, 128, 64).to_vec();
        bytes[63] ^= 1;
        pattern.check(Way::Reply, 128, &bytes).unwrap_err();
    }
}
