/* Loaded blocking in <head>, before the first paint: the theme asked for in the address, or chosen earlier. */
try {
  const theme = new URLSearchParams(location.search).get("theme") || localStorage.theme;
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch { /* storage is off: follow the system */ }
