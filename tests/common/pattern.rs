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
        let skip = usize::try_from(offset % 8).expect("below 8");
        let mut index = offset / 8;
        let (head, body) = buffer.split_at_mut(((8 - skip) % 8).min(buffer.len()));
        if !head.is_empty() {
            head.copy_from_slice(&self.word(index)[skip..skip + head.len()]);
            index += 1;
        }
        for chunk in body.chunks_mut(8) {
            chunk.copy_from_slice(&self.word(index)[..chunk.len()]);
            index += 1;
        }
    }

    /// Fails at the first byte that is not the one of its offset, and says
    /// where else in the neighbourhood it belongs.
    pub fn check(self, offset: u64, got: &[u8], what: &str) {
        let mut want = vec![0; got.len()];
        self.fill(offset, &mut want);
        if want == got {
            return;
        }
        let bad = (0..got.len()).find(|&i| got[i] != want[i]).unwrap_or(0);
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
