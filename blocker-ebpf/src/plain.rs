//! Types that are plain memory: map keys, map values and packet headers.

/// A type that any bytes are a value of: C's layout, no padding, no invalid value, no pointer. To the
/// daemon (feature `user`) each that is declared by [`plain!`](crate::plain!) is aya's `Pod`, too.
///
/// # Safety
/// The type is as said above.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: every bit pattern is a number.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: an array has no padding between its elements.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Declares types that are [`Plain`].
///
/// A type with padding does not compile, since padding would make bytes that nobody wrote part of
/// a map's key or value; nor does one with a field that is not plain itself.
#[macro_export]
macro_rules! plain {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident : $ty:ty),* $(,)? })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }
        const _: () = {
            const fn is_plain<T: $crate::Plain>() {}
            $(is_plain::<$ty>();)*
            assert!(
                size_of::<$name>() == 0 $(+ size_of::<$ty>())*,
                concat!(stringify!($name), " has padding"),
            );
        };
        // SAFETY: C's layout, and just above: every field is plain, and nothing is between them.
        unsafe impl $crate::Plain for $name {}
        // SAFETY: `Plain` says the same.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    )*};
}
