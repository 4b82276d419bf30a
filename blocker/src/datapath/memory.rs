//! Arrays that are mapped into this process for writing (`BPF_F_MMAPABLE`, Linux 5.5).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

/// An `ARRAY` map's values, mapped into this process.
///
/// The kernel stores the values one after the other, each rounded up to 8 bytes (`array_map_alloc`).
/// The ABI's types in such arrays have sizes that are multiples of 8.
pub struct Mapped<T> {
    start: NonNull<T>,
    values: usize,
}

// SAFETY: the mapping is shared memory without thread affinity, and `write` needs `&mut self`.
unsafe impl<T: Send> Send for Mapped<T> {}
// SAFETY: methods with `&self` only copy values and return addresses. Dereferencing is the caller's.
unsafe impl<T: Sync> Sync for Mapped<T> {}

impl<T: Copy> Mapped<T> {
    /// Maps the `values` values of the array behind `fd`, which must hold `T`s.
    ///
    /// # Errors
    /// The error of `mmap`.
    pub fn new(fd: impl AsFd, values: usize) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        let length = size_of::<T>() * values;
        // SAFETY: a new mapping of an open file descriptor, at an address that the kernel chooses.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Self { start, values })
    }

    /// The number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values
    }

    /// Copies values to indexes `first..`.
    ///
    /// # Panics
    /// If the values do not fit. The snapshot's compiler has checked that they do.
    pub fn write(&mut self, first: usize, values: &[T]) {
        assert!(
            first <= self.values && values.len() <= self.values - first,
            "values beyond the map's end"
        );
        // SAFETY: the range was checked, and the source is ordinary memory. The datapath may read
        // these bytes at any time, so callers write only to the idle bank.
        unsafe {
            std::ptr::copy_nonoverlapping(
                values.as_ptr(),
                self.start.as_ptr().add(first),
                values.len(),
            );
        };
    }

    /// A copy of a value of the live bank, which is never written.
    ///
    /// # Panics
    /// If there is no such value.
    #[must_use]
    pub fn read(&self, place: usize) -> T {
        assert!(place < self.values, "value beyond the map's end");
        // SAFETY: inside the mapping; `write` needs `&mut self`, and the programs only read.
        unsafe { self.start.as_ptr().add(place).read() }
    }

    /// The address of a value, for access to words that this process and the datapath share.
    ///
    /// # Panics
    /// If there is no such value.
    #[must_use]
    pub fn at(&self, place: usize) -> *mut T {
        assert!(place < self.values, "value beyond the map's end");
        // SAFETY: inside the mapping.
        unsafe { self.start.as_ptr().add(place) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping, and no reference into the mapping outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), size_of::<T>() * self.values) };
    }
}
