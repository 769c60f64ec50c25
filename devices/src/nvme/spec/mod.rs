//! NVMe structures as they are on the wire: registers, commands, completions, data structures.
//!
//! No behaviour. Section numbers are of the NVM Express Base Specification 2.0c, or of the NVM
//! Command Set Specification 1.0c where it says NVM. Fields that count from zero end in `_z`.

mod command;
mod completion;
mod features;
mod identify;
mod log;
mod registers;

pub use command::*;
pub use completion::*;
pub use features::*;
pub use identify::*;
pub use log::*;
pub use registers::*;

/// Declares a code whose values the guest chooses: known ones have names, others stay what they are.
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        $name:ident: $repr:ty { $( $(#[$item_meta:meta])* $item:ident = $value:expr, )* }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
        )]
        #[repr(transparent)]
        pub struct $name(pub $repr);

        impl $name {
            $( $(#[$item_meta])* pub const $item: Self = Self($value); )*

            /// The name that it has here, in capitals; none if it is unknown.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $( Self::$item => Some(stringify!($item)), )*
                    _ => None,
                }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }
    };
}
pub(crate) use open_enum;

/// NSID that means every attached namespace.
pub const BROADCAST: u32 = 0xffff_ffff;

/// Text in a fixed field: left justified, padded with spaces, cut if too long.
pub fn ascii<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    field
}
