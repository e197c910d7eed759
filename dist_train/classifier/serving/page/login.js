/* The page that asks for the token. The server shows it wherever the token is missing or wrong. */

import { $ } from "./dom.js";
import { offerLanguages, t } from "./texts.js";

const say = () => { $("wrong").textContent = new URLSearchParams(location.search).has("token") ? t("login.wrong") : ""; };
offerLanguages(say);
say();
