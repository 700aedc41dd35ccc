//! Bytes that tell where they belong: a lost, repeated, reordered or
//! misdelivered byte does not fit.

use super::rng::mix;

/// The endless text of one direction of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Pattern {
    tag: u64,
}

impl Pattern {
    pub fn new(tag: u64) -> Self {
        Self { tag: mix(tag) }
    }

    fn word(self, index: u64) -> [u8; 8] {
        mix(self.tag ^ index).to_le_bytes()
    }

    /// The bytes from `offset` on.
    pub fn fill(self, offset: u64, buffer: &mut [u8]) {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let skip = usize::try_from(at % 8).expect("below 8");
            let n = rest.len().min(8 - skip);
            let (head, tail) = rest.split_at_mut(n);
            head.copy_from_slice(&self.word(at / 8)[skip..skip + n]);
            at += n as u64;
            rest = tail;
        }
    }

    /// Fails at the first byte that is not the one of its offset, and says
    /// where else in the neighbourhood it belongs.
    pub fn check(self, offset: u64, got: &[u8], what: &str) {
        let mut want = vec![0; got.len()];
        self.fill(offset, &mut want);
        let Some(bad) = (0..got.len()).find(|&i| got[i] != want[i]) else {
            return;
        };
        let bad_at = offset + bad as u64;
        let found = &got[bad..got.len().min(bad + 16)];
        panic!(
            "{what}: wrong byte at offset {bad_at} ({} bytes right before it in this read of {}): \
             got {found:02x?}, {}",
            bad,
            got.len(),
            self.locate(bad_at, found)
        );
    }

    fn locate(self, near: u64, found: &[u8]) -> String {
        const AROUND: u64 = 8 << 20;
        if found.len() < 8 {
            return "too few bytes to tell whose".to_owned();
        }
        let from = near.saturating_sub(AROUND);
        let mut text = vec![0; usize::try_from(2 * AROUND).expect("a size")];
        self.fill(from, &mut text);
        text.windows(found.len())
            .position(|window| window == found)
            .map_or_else(
                || "which is nowhere near in this direction".to_owned(),
                |at| format!("which belongs at offset {}", from + at as u64),
            )
    }
}
