# find_package(moe CONFIG REQUIRED) gives the target moe::moe. The place of this file says where the library is.
get_filename_component(_moe_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT TARGET moe::moe)
  add_library(moe::moe SHARED IMPORTED)
  set_target_properties(moe::moe PROPERTIES
    IMPORTED_LOCATION "${_moe_prefix}/lib/libmoe.so"
    INTERFACE_INCLUDE_DIRECTORIES "${_moe_prefix}/include")
endif()

unset(_moe_prefix)
