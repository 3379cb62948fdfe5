/// @file
/// The version of the headers; the package config file reads it from here.
#pragma once

#define OMNISPARSE_VERSION_MAJOR 0
#define OMNISPARSE_VERSION_MINOR 1
#define OMNISPARSE_VERSION_PATCH 0
