# What `cmake --install` puts down and find_package(omnisparse) finds. Relocatable, and the same for
# every architecture, hence below share/.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/omnisparse)
configure_package_config_file(cmake/omnisparse-config.cmake.in
  ${PROJECT_BINARY_DIR}/omnisparse-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/omnisparse-config-version.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)

install(TARGETS omnisparse EXPORT omnisparse-targets FILE_SET HEADERS)
install(EXPORT omnisparse-targets NAMESPACE omnisparse:: DESTINATION ${package_dir})
# A user's build that exports from its own tree a target that links ours needs ours exported there.
export(EXPORT omnisparse-targets NAMESPACE omnisparse:: FILE ${PROJECT_BINARY_DIR}/omnisparse-targets.cmake)
install(FILES
  ${PROJECT_BINARY_DIR}/omnisparse-config.cmake
  ${PROJECT_BINARY_DIR}/omnisparse-config-version.cmake
  ${PROJECT_SOURCE_DIR}/cmake/omnisparse-cuda.cmake
  ${PROJECT_SOURCE_DIR}/cmake/omnisparse-eigen.cmake
  DESTINATION ${package_dir})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/omnisparse)
