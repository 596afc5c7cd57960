//! Memory that one edit leaves for the next.
//!
//! Whoever edits thousands of files would have an allocator ask the kernel for memory, and give it back, for each of them; the
//! kernel clears every page that it hands out, which costs more than what is done with it. Buffers kept here stay mapped.

/// Buffers that are not in use.
#[derive(Debug, Default)]
pub struct Spares {
    /// By their capacity, the smallest first.
    buffers: Vec<Vec<u8>>,
}

impl Spares {
    /// More buffers than an edit has at a time are not kept.
    const MOST: usize = 64;

    /// What is smaller, in bytes, an allocator hands out without asking the kernel.
    const SMALL: usize = 1 << 10;

    /// An empty buffer, in which so many bytes have room.
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let fits = self.buffers.partition_point(|buffer| buffer.capacity() < length);
        if fits < self.buffers.len() {
            let mut buffer = self.buffers.remove(fits);
            buffer.clear();
            return buffer;
        }
        // In place of the largest, which is too small. Not grown: what is in it would be copied.
        drop(self.buffers.pop());
        Vec::with_capacity(if length < Self::SMALL { length } else { length.next_power_of_two() })
    }

    /// A buffer with these bytes.
    pub(super) fn copy(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = self.take(bytes.len());
        buffer.extend_from_slice(bytes);
        buffer
    }

    /// A buffer with so many zeros.
    pub(super) fn zeros(&mut self, length: usize) -> Vec<u8> {
        let mut buffer = self.take(length);
        buffer.resize(length, 0);
        buffer
    }

    /// Keeps a buffer that is no longer in use.
    pub fn give(&mut self, buffer: Vec<u8>) {
        if buffer.capacity() >= Self::SMALL && self.buffers.len() < Self::MOST {
            let at = self.buffers.partition_point(|known| known.capacity() < buffer.capacity());
            self.buffers.insert(at, buffer);
        }
    }

    /// Gives memory back, the largest buffers first, until no more than so many bytes are kept.
    pub fn shrink(&mut self, most: usize) {
        while self.buffers.iter().map(Vec::capacity).sum::<usize>() > most {
            self.buffers.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Spares;

    #[test]
    fn the_smallest_that_fits_is_used_again_and_what_is_too_much_is_given_back() {
        let mut spares = Spares::default();
        let fill = |spares: &mut Spares| {
            for capacity in [2000, 9000, 5000, 10, 0] {
                spares.give(Vec::with_capacity(capacity));
            }
        };
        fill(&mut spares);
        let mut buffer = spares.take(3000);
        assert_eq!(buffer.capacity(), 5000);
        buffer.extend_from_slice(b"left");
        spares.give(buffer);
        assert!(spares.take(5000).is_empty());
        assert!(spares.take(10_000).capacity() >= 10_000, "in place of the largest");
        assert_eq!((spares.take(1).capacity(), spares.buffers.len()), (2000, 0), "small ones are not kept");
        assert_eq!((spares.copy(b"ab"), spares.zeros(2)), (b"ab".to_vec(), vec![0; 2]));
        fill(&mut spares);
        spares.shrink(7500);
        assert_eq!(spares.buffers.iter().map(Vec::capacity).collect::<Vec<_>>(), [2000, 5000]);
    }
}
