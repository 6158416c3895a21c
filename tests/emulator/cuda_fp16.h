// The 16-bit types are part of the emulated types.
#include "emu/types.h"
